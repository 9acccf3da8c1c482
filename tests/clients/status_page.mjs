// Opens the status page in Chromium: URL DIRECTORY. Fails if it does not fit a width, logs an error, fetches anything but
// itself, is not refreshed, or has no figures without JavaScript. Screenshots are written to the directory.

import { chromium } from "playwright-core";

const [url, directory] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const problems = [];

async function open(options, name) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && problems.push(`${name}: ${message.text()}`));
  page.on("pageerror", (error) => problems.push(`${name}: ${error}`));
  page.on("request", (request) => {
    const path = new URL(request.url()).pathname;
    if (!["/", "/events", "/favicon.ico"].includes(path)) problems.push(`${name}: fetches ${request.url()}`);
  });
  await page.goto(url);
  return { context, page };
}

for (const colorScheme of ["light", "dark"]) {
  for (const width of [360, 800, 1440]) {
    const name = `${colorScheme}-${width}`;
    const { context, page } = await open({ viewport: { width, height: 900 }, colorScheme }, name);
    await page.getByText("New figures every two seconds").waitFor({ timeout: 10_000 });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (overflow > 0) problems.push(`${name}: ${overflow} pixels wider than the window`);
    await page.screenshot({ path: `${directory}/${name}.png`, fullPage: true });
    await context.close();
  }
}
const { context, page } = await open({ javaScriptEnabled: false }, "without JavaScript");
for (const text of ["serving", "answers per second", "Largest torrents", "Shards", "Config: defaults", "udp.listen", "Log"]) {
  if ((await page.getByText(text).count()) === 0) problems.push(`without JavaScript: ${text} is missing`);
}
await context.close();
await browser.close();
if (problems.length > 0) {
  console.error(problems.join("\n"));
  process.exit(1);
}
