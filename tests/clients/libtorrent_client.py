#!/usr/bin/python3
"""Downloads or seeds a torrent with libtorrent: TORRENT DIRECTORY INTERFACE.

Runs until SIGINT, then sends the stopped event.

All sources of peers except the tracker are disabled.
"""

import signal
import sys
import time

import libtorrent

torrent, directory, interface = sys.argv[1:]
category = libtorrent.alert.category_t
session = libtorrent.session(
    {
        "listen_interfaces": interface,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        # The tracker of these tests has a self-signed certificate.
        "validate_https_trackers": False,
        # Its address is private, which libtorrent would refuse otherwise.
        "ssrf_mitigation": False,
        # Over uTP, libtorrent 2.0.8 stops in the middle of a transfer now and then.
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        # By default a peer is tried again only a minute or two after a failed connection.
        "min_reconnect_time": 1,
        # With the alerts of the logs of peers, libtorrent 2.0.8 crashes now and then.
        "alert_mask": category.error_notification
        | category.tracker_notification
        | category.peer_notification
        | category.connect_notification
        | category.status_notification,
    }
)
parameters = libtorrent.add_torrent_params()
parameters.ti = libtorrent.torrent_info(torrent)
parameters.save_path = directory
parameters.flags |= libtorrent.torrent_flags.disable_dht
parameters.flags |= libtorrent.torrent_flags.disable_lsd
parameters.flags |= libtorrent.torrent_flags.disable_pex
session.add_torrent(parameters)


announces = replies = 0
interrupts = []
# A handler instead of KeyboardInterrupt, which could be raised after an alert is taken and before it
# is counted.
signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))


def show_alerts():
    """Prints the alerts about the tracker and about connections to peers, and
    counts announces and their replies."""
    global announces, replies
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if type(alert).__name__.startswith(("tracker", "scrape", "peer_", "incoming_", "listen_")):
            print(time.monotonic(), alert.message(), flush=True)
        announces += isinstance(alert, libtorrent.tracker_announce_alert)
        replies += isinstance(alert, libtorrent.tracker_reply_alert)


while not interrupts:
    show_alerts()
# Sends the stopped event and waits for its reply. Waiting for a number of alerts of any
# kind would not do, because on a busy machine unrelated alerts may come first.
show_alerts()
before = announces
session.pause()
deadline = time.monotonic() + 20
while (announces == before or replies < announces) and time.monotonic() < deadline:
    show_alerts()
