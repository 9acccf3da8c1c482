#!/usr/bin/python3
"""Downloads or seeds a torrent with libtorrent until it is killed: TORRENT DIRECTORY INTERFACE.

Every way to find peers but the tracker is off.
"""

import sys
import time

import libtorrent

torrent, directory, interface = sys.argv[1:]
session = libtorrent.session(
    {
        "listen_interfaces": interface,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "alert_mask": libtorrent.alert.category_t.all_categories,
    }
)
parameters = libtorrent.add_torrent_params()
parameters.ti = libtorrent.torrent_info(torrent)
parameters.save_path = directory
parameters.flags |= libtorrent.torrent_flags.disable_dht
parameters.flags |= libtorrent.torrent_flags.disable_lsd
parameters.flags |= libtorrent.torrent_flags.disable_pex
session.add_torrent(parameters)


def show_tracker_alerts():
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if "tracker" in type(alert).__name__:
            print(time.monotonic(), alert.message(), flush=True)


try:
    while True:
        show_tracker_alerts()
except KeyboardInterrupt:
    # Says goodbye to the tracker, and waits for that to have gone out.
    session.pause()
    for _ in range(3):
        show_tracker_alerts()
