#!/bin/sh
# Deluge as a client of one torrent, without means to find peers other than its tracker: TORRENT DIRECTORY ADDRESS
config=$2/deluge
mkdir -p "$config"
printf '%s' '{"file": 1, "format": 1}{"dht": false, "lsd": false, "utpex": false, "upnp": false, "natpmp": false,
    "listen_interface": "'"$3"'", "listen_ports": [6881, 6881], "random_port": false, "new_release_check": false}' \
    >"$config/core.conf"
deluged --do-not-daemonize --config "$config" --logfile "$config/log" --loglevel info &
daemon=$!
trap 'kill -INT $daemon; wait $daemon; exit' INT TERM
until deluge-console --config "$config" "add -p $2 $1" >"$config/console.log" 2>&1 &&
    grep -q -i "added" "$config/console.log"; do
    kill -0 $daemon || exit 1
    sleep 0.5
done
wait $daemon
