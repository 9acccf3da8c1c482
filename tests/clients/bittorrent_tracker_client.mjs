// Runs the npm package bittorrent-tracker as a client: announces and scrapes. Arguments: package name, tracker URL.
// Prints a JSON object with the result of each step. Fails on an error, or after 20 seconds.

import { randomBytes } from 'node:crypto'

const [module, url] = process.argv.slice(2)
const exported = await import(module)
const Client = exported.Client ?? exported.default
const announce = [url]
const infoHash = randomBytes(20)

function client (port) {
  const made = new Client({ infoHash, peerId: randomBytes(20), announce, port })
  made.on('error', fail)
  made.on('warning', fail)
  return made
}

function fail (error) {
  console.error(error)
  process.exit(1)
}

setTimeout(() => fail(new Error('timeout')), 20_000).unref()

function once (emitter, event, act) {
  return new Promise(resolve => {
    emitter.once(event, resolve)
    act()
  })
}

// Announce replies over UDP have no number of downloads.
function counts ({ complete, incomplete, downloaded }) {
  return [complete, incomplete, downloaded ?? null]
}

const seeder = client(7001)
const leecher = client(7002)
const steps = {}
steps.seederStarts = counts(await once(seeder, 'update', () => seeder.start({ left: 0 })))
const peer = once(leecher, 'peer', () => {})
steps.leecherStarts = counts(await once(leecher, 'update', () => leecher.start({ left: 100 })))
steps.peer = await peer
steps.scrape = counts(await once(leecher, 'scrape', () => leecher.scrape()))
steps.completes = counts(await once(leecher, 'update', () => leecher.complete({ left: 0 })))
steps.scrapeAfter = counts(await once(leecher, 'scrape', () => leecher.scrape()))
steps.stops = counts(await once(leecher, 'update', () => leecher.stop({ left: 0 })))
console.log(JSON.stringify(steps))
process.exit(0)
