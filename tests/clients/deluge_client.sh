#!/bin/sh
# Runs Deluge with one torrent; the tracker is the only source of peers. Arguments: TORRENT DIRECTORY ADDRESS
config=$2/deluge
mkdir -p "$config"
printf '%s' '{"file": 1, "format": 1}{"dht": false, "lsd": false, "utpex": false, "upnp": false, "natpmp": false,
    "listen_interface": "'"$3"'", "listen_ports": [6881, 6881], "random_port": false, "new_release_check": false}' \
    >"$config/core.conf"
(
    until deluge-console --config "$config" "add -p $2 $1" >"$config/console.log" 2>&1 &&
        grep -q -i "added" "$config/console.log"; do
        kill -0 $$ || exit
        sleep 0.5
    done
) &
exec deluged --do-not-daemonize --config "$config" --logfile "$config/log" --loglevel info
