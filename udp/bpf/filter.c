// SPDX-License-Identifier: MIT

/*
 * XDP program that answers connect requests, drops malformed and forged requests, and redirects other requests to AF_XDP
 * sockets, before the network stack.
 *
 * What is not exactly an Ethernet frame (with at most one VLAN tag) for this interface, with an unfragmented UDP
 * datagram over IPv4 without options or IPv6 without extension headers to one of the addresses of the tracker, is
 * passed to the network stack unchanged. For the rest, the decisions are those of the tracker in user space
 * (`Tracker::prove`), in the same order: tests compare the program with a model of it.
 *
 * The program reads no clock: the current epoch of connection ids is part of the settings. `udp/bpf/compile` compiles
 * it to filter.o, which is part of the sources.
 */

#include <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const adjust_tail)(struct xdp_md *context, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;
static long (*const redirect_map)(void *map, u64 key, u64 action_if_missing) = (void *)BPF_FUNC_redirect_map;
static u64 (*const buffer_len)(struct xdp_md *context) = (void *)BPF_FUNC_xdp_get_buff_len;

/* The numbers below are part of the interface with user space: `udp/src/xdp/layout.rs` repeats them. */

/* Maximum number of connection id keys. */
#define KEYS_MAX 8

/* Number of receive queues of an interface that have counters of their own; the last one also counts for higher ones. */
#define QUEUES 128

/* Outcomes of requests that end here; user space counts them under these names. */
enum outcome {
    CONNECTED,
    TOO_SHORT,
    UNKNOWN_ACTION,
    BAD_MAGIC,
    WRONG_CONNECTION_ID,
    FORBIDDEN_NETWORK,
    OUTCOMES,
};

enum family { IPV4, IPV6, FAMILIES };

/* Bytes of the payloads of requests that end here, and of their replies. */
struct bytes {
    u64 received, sent;
};

/* What happened to a frame. */
enum verdict { PASSED, ANSWERED, DROPPED, REDIRECTED, VERDICTS };

/* Longest frame that fits into a buffer of an AF_XDP socket. */
#define SOCKET_FRAME_LEN_MAX 1792

/* A connection id key: the two halves of a SipHash key. */
struct key {
    u64 first, second;
};

struct interface {
    u16 mac[3];
    /* Position of its counters. */
    u16 number;
} __attribute__((aligned(8)));

/* Maximum numbers of IPv4 addresses and of interfaces that are searched for in the settings: a search there takes a small
   part of the time of one in a hash map. */
#define INLINE_ADDRESSES 8
#define INLINE_INTERFACES 4

struct settings {
    /* Keys of connection ids; the first issues ids, all are accepted. */
    struct key keys[KEYS_MAX];
    /* The current epoch of connection ids. */
    u64 epoch;
    u32 key_count;
    u32 lifetime_epochs;
    /* Whether requests with a wrong connection id are passed to user space, which replies with an error. */
    u32 passes_wrong_ids;
    /* Which of the two pairs of network maps is in force. */
    u32 networks;
    /* Whether sources are looked up in the network maps. */
    u32 has_networks;
    /* Whether sources that are in no network are refused. */
    u32 refuses_others;
    /* IPv4 addresses (lower 32 bits) and ports on which the tracker listens; 0 for none. */
    u64 listeners[INLINE_ADDRESSES];
    /* IPv4 addresses of this host; 0 for none. */
    u32 local[INLINE_ADDRESSES];
    /* Whether the map `listeners` has IPv4 addresses that these lack. */
    u32 has_more_addresses;
    /* Whether connects are passed, because the network maps lack networks. */
    u32 passes_connects;
    /* Indexes of interfaces, and the interfaces; others are in the map `interfaces`. */
    u32 indexes[INLINE_INTERFACES];
    struct interface interfaces[INLINE_INTERFACES];
};

/* Keys of maps are written as 64-bit words: without CAP_PERFMON, a narrower value must not be written to a stack slot in
   which the compiler has stored a pointer before. The lower half of a word is the first in memory. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half of a word comes first");

/* An address, IPv4 as ::ffff:0:0/96, and a port, both in network byte order. A local address has an entry of port 0. */
struct listener {
    u64 address[2];
    u64 port;
};

/* The length of a prefix in 32 bits, and an address. */
#define NETWORK_V4_LEN 8
#define NETWORK_V6_LEN 20

struct map {
    u32 type, key_size, value_size, max_entries, flags;
};

/* Index of the settings in force in the map `settings`: 0 or 1. */
struct map SECTION("maps") current = {BPF_MAP_TYPE_ARRAY, sizeof(u32), sizeof(u32), 1, 0};

/* Two sets of settings; user space writes the one that is not in force. */
struct map SECTION("maps") settings = {BPF_MAP_TYPE_ARRAY, sizeof(u32), sizeof(struct settings), 2, 0};

/* Interfaces by their index. */
struct map SECTION("maps") interfaces = {BPF_MAP_TYPE_HASH, sizeof(u32), sizeof(struct interface), 64, 0};

/* Addresses on which the tracker listens, and local addresses. */
struct map SECTION("maps") listeners = {BPF_MAP_TYPE_HASH, sizeof(struct listener), sizeof(u32), 4096, 0};

/* Networks; the value says whether their sources are refused. User space fills the pair that is not in force. */
struct map SECTION("maps") networks_v4_0 = {
    BPF_MAP_TYPE_LPM_TRIE, NETWORK_V4_LEN, sizeof(u32), 1 << 20, BPF_F_NO_PREALLOC};
struct map SECTION("maps") networks_v4_1 = {
    BPF_MAP_TYPE_LPM_TRIE, NETWORK_V4_LEN, sizeof(u32), 1 << 20, BPF_F_NO_PREALLOC};
struct map SECTION("maps") networks_v6_0 = {
    BPF_MAP_TYPE_LPM_TRIE, NETWORK_V6_LEN, sizeof(u32), 1 << 20, BPF_F_NO_PREALLOC};
struct map SECTION("maps") networks_v6_1 = {
    BPF_MAP_TYPE_LPM_TRIE, NETWORK_V6_LEN, sizeof(u32), 1 << 20, BPF_F_NO_PREALLOC};

/* Requests by outcome and family. */
struct map SECTION("maps") requests = {BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(u32), sizeof(u64), OUTCOMES * FAMILIES, 0};

struct map SECTION("maps") bytes = {BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(u32), sizeof(struct bytes), 1, 0};

/* Frames by interface, receive queue and verdict; user space sets the number of interfaces. */
struct map SECTION("maps") frames = {BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(u32), sizeof(u64), QUEUES * VERDICTS, 0};

/* AF_XDP sockets by interface and receive queue; user space sets the number of interfaces. */
struct map SECTION("maps") sockets = {BPF_MAP_TYPE_XSKMAP, sizeof(u32), sizeof(u32), QUEUES, 0};

/* Headers of a frame. Frames are aligned to 2 bytes only, but the program runs where wider accesses need no alignment. */
struct ethernet {
    u16 destination[3], source[3];
    u16 type;
};

struct vlan {
    u16 tag, type;
};

struct ipv4 {
    u8 version_and_len, service;
    u16 total_len, id, fragment;
    u8 time_to_live, protocol;
    u16 checksum;
    u32 source, destination;
};

struct ipv6 {
    u32 version_and_flow;
    u16 payload_len;
    u8 next_header, hop_limit;
    u32 source[4], destination[4];
};

struct udp {
    u16 source, destination, len, checksum;
};

/* The first 16 bytes of a request: BEP 15. */
struct request {
    u32 connection_id[2];
    u32 action, transaction_id;
};

/* Reply to a connect request. */
struct connect_reply {
    u32 action, transaction_id;
    u32 connection_id[2];
};

#define ACTION_CONNECT 0
#define ACTION_ANNOUNCE 1
#define ACTION_SCRAPE 2
#define ACTION_ANNOUNCE_V6 4

#define CONNECT_LEN 16
#define ANNOUNCE_LEN 98
#define ANNOUNCE_V6_LEN 110
#define SCRAPE_LEN_MIN 36

#define PROTOCOL_MAGIC 0x41727101980ULL

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_VLAN 0x8100
#define PROTOCOL_UDP 17

/* Minimum length of an Ethernet frame without its checksum: shorter ones are padded. */
#define FRAME_LEN_MIN 60

#define TIME_TO_LIVE 64

#define to_be16 __builtin_bswap16
#define to_be32 __builtin_bswap32
#define to_be64 __builtin_bswap64

#define ROTATE(value, bits) ((value) << (bits) | (value) >> (64 - (bits)))

#define SIP_ROUND                                                                                                      \
    v0 += v1, v1 = ROTATE(v1, 13), v1 ^= v0, v0 = ROTATE(v0, 32);                                                      \
    v2 += v3, v3 = ROTATE(v3, 16), v3 ^= v2;                                                                           \
    v0 += v3, v3 = ROTATE(v3, 21), v3 ^= v0;                                                                           \
    v2 += v1, v1 = ROTATE(v1, 17), v1 ^= v2, v2 = ROTATE(v2, 32)

#define SIP_WORD(word) v3 ^= (word), ({ SIP_ROUND; SIP_ROUND; }), v0 ^= (word)

/* A source address as words of a SipHash message; that of IPv4 is the lower half of the first. */
struct source {
    u64 words[2];
    u64 family;
};

/* Returns the connection id of a source in an epoch, as `ConnectionIds` issues it: SipHash-2-4 of the address and the
   epoch number. */
NOINLINE u64 connection_id(const struct key *key, const struct source *source, u64 epoch) {
    u64 v0 = key->first ^ 0x736f6d6570736575ULL, v1 = key->second ^ 0x646f72616e646f6dULL;
    u64 v2 = key->first ^ 0x6c7967656e657261ULL, v3 = key->second ^ 0x7465646279746573ULL;
    u64 last, len;
    if (source->family == IPV4) {
        /* 32 bits of the epoch. */
        last = source->words[0] | (u64)to_be32((u32)epoch) << 32;
        len = 8;
    } else {
        SIP_WORD(source->words[0]);
        SIP_WORD(source->words[1]);
        last = to_be64(epoch);
        len = 24;
    }
    SIP_WORD(last);
    SIP_WORD(len << 56);
    v2 ^= 0xff;
    SIP_ROUND;
    SIP_ROUND;
    SIP_ROUND;
    SIP_ROUND;
    u64 id = epoch << 56 | (v0 ^ v1 ^ v2 ^ v3) >> 8;
    return id ? id : 1;
}

/* Returns whether a connection id was issued to a source with any of the keys, and has not expired. */
NOINLINE int accepts(const struct settings *settings, const struct source *source, u64 id) {
    u64 now = settings->epoch, epoch;
    u8 age = (u8)now - (u8)(id >> 56);
    if (age == 255)
        /* The clock of another tracker with the same keys may be ahead. */
        epoch = now + 1;
    else if (age <= settings->lifetime_epochs)
        epoch = now - age;
    else
        return 0;
#pragma unroll
    for (u32 number = 0; number < KEYS_MAX; number++)
        if (number < settings->key_count && connection_id(&settings->keys[number], source, epoch) == id)
            return 1;
    return 0;
}

/* Returns the value of a map whose keys are numbers of 32 bits. */
INLINE void *value_at(void *map, u32 position) {
    u64 key = position;
    return map_lookup(map, &key);
}

/* Counts a frame, and returns the action for it. */
INLINE int count(struct xdp_md *context, const struct interface *interface, enum verdict verdict, int action) {
    u32 queue = context->rx_queue_index < QUEUES ? context->rx_queue_index : QUEUES - 1;
    u64 *counter = value_at(&frames, (interface->number * QUEUES + queue) * VERDICTS + verdict);
    if (counter)
        *counter += 1;
    return action;
}

INLINE int pass(struct xdp_md *context, const struct interface *interface) {
    return count(context, interface, PASSED, XDP_PASS);
}

/* Redirects a request for user space to the AF_XDP socket of its receive queue; passes it if there is none. */
INLINE int deliver(struct xdp_md *context, const struct interface *interface, u32 present) {
    u32 queue = context->rx_queue_index;
    if (queue >= QUEUES || present > SOCKET_FRAME_LEN_MAX)
        return pass(context, interface);
    int action = redirect_map(&sockets, interface->number * QUEUES + queue, XDP_PASS);
    return count(context, interface, action == XDP_REDIRECT ? REDIRECTED : PASSED, action);
}

/* Counts a request that is not passed; `len` and `reply_len` are the bytes of the payloads. */
INLINE void count_request(enum outcome outcome, u32 family, u32 len, u32 reply_len) {
    u64 *counter = value_at(&requests, outcome * FAMILIES + family);
    struct bytes *sums = value_at(&bytes, 0);
    if (!counter || !sums)
        return;
    *counter += 1;
    sums->received += len;
    sums->sent += reply_len;
}

INLINE int drop(struct xdp_md *context, const struct interface *interface, enum outcome outcome, u32 family, u32 len) {
    count_request(outcome, family, len, 0);
    return count(context, interface, DROPPED, XDP_DROP);
}

/* Adds the 16-bit words of `len` bytes to a checksum. */
INLINE u32 add_words(u32 sum, const void *bytes, u32 len) {
#pragma unroll
    for (u32 word = 0; word < len / 2; word++)
        sum += ((const u16 *)bytes)[word];
    return sum;
}

INLINE u16 fold(u32 sum) {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

/* Returns whether packets from an address are left to the network stack: this network, loopback, multicast and
   reserved addresses, which no client has. */
INLINE int is_special_v4(u32 address) {
    u8 first = address & 0xff;
    return first == 0 || first == 127 || first >= 224;
}

INLINE int is_special_v6(const u32 *address) {
    u8 first = address[0] & 0xff, second = address[0] >> 8 & 0xff;
    /* Multicast, link-local; and unspecified, loopback, IPv4-mapped and IPv4-compatible. */
    return first == 0xff || (first == 0xfe && (second & 0xc0) == 0x80) || (address[0] == 0 && address[1] == 0);
}

/* Returns whether the tracker listens on an IPv4 address and port. */
INLINE int listens_on_v4(const struct settings *in, u32 address, u16 port) {
    u64 wanted = address | (u64)port << 32;
#pragma unroll
    for (u32 number = 0; number < INLINE_ADDRESSES; number++)
        if (in->listeners[number] == wanted)
            return 1;
    struct listener listener = {{0, (u64)address << 32 | 0xffff0000}, port};
    return in->has_more_addresses && map_lookup(&listeners, &listener);
}

/* Returns whether an IPv4 address is one of this host. */
INLINE int is_local_v4(const struct settings *in, u32 address) {
#pragma unroll
    for (u32 number = 0; number < INLINE_ADDRESSES; number++)
        if (in->local[number] == address)
            return 1;
    struct listener local = {{0, (u64)address << 32 | 0xffff0000}, 0};
    return in->has_more_addresses && map_lookup(&listeners, &local);
}

/* Returns whether the tracker listens on an IPv6 address and port or, with port 0, whether the address is local. */
INLINE int has_v6(u64 first, u64 second, u16 port) {
    struct listener listener = {{first, second}, port};
    return map_lookup(&listeners, &listener) != 0;
}

/* Returns whether the policy refuses requests from a source. */
INLINE int is_refused(const struct settings *settings, const struct source *source) {
    if (!settings->has_networks)
        return 0;
    const u32 *refuses;
    if (source->family == IPV4) {
        u64 network = 32 | source->words[0] << 32;
        refuses = settings->networks ? map_lookup(&networks_v4_1, &network) : map_lookup(&networks_v4_0, &network);
    } else {
        u64 first = source->words[0], second = source->words[1];
        u64 network[3] = {128 | first << 32, first >> 32 | second << 32, second >> 32};
        refuses = settings->networks ? map_lookup(&networks_v6_1, network) : map_lookup(&networks_v6_0, network);
    }
    return refuses ? *refuses != 0 : settings->refuses_others != 0;
}

/* Cuts a frame of `present` bytes to a length, unless it is shorter already; returns whether that succeeded. */
INLINE int cut(struct xdp_md *context, u32 present, u32 len) {
    if (len < FRAME_LEN_MIN)
        len = FRAME_LEN_MIN;
    return present <= len || adjust_tail(context, (int)len - (int)present) == 0;
}

/* Writes the reply to a connect request into its frame; returns whether that succeeded. `offset` is the length of the
   Ethernet header with its VLAN tag. */
INLINE int write_reply(struct xdp_md *context, u32 present, u64 id, u32 transaction_id, u32 offset, u32 family) {
    const u32 udp_offset = offset + (family == IPV4 ? sizeof(struct ipv4) : sizeof(struct ipv6));
    const u32 reply_len = sizeof(struct connect_reply);
    if (!cut(context, present, udp_offset + sizeof(struct udp) + reply_len))
        return 0;
    u8 *data = (u8 *)(long)context->data;
    void *end = (void *)(long)context->data_end;
    struct ethernet *ethernet = (void *)data;
    struct udp *udp = (void *)(data + udp_offset);
    struct connect_reply *reply = (void *)(udp + 1);
    if ((void *)(reply + 1) > end)
        return 0; /* Only for the verifier: the request was at least as long as the reply. */
#pragma unroll
    for (u32 word = 0; word < 3; word++) {
        u16 mac = ethernet->destination[word];
        ethernet->destination[word] = ethernet->source[word];
        ethernet->source[word] = mac;
    }
    u16 port = udp->source;
    udp->source = udp->destination;
    udp->destination = port;
    udp->len = to_be16(sizeof(struct udp) + reply_len);
    udp->checksum = 0;
    reply->action = 0;
    reply->transaction_id = transaction_id;
    reply->connection_id[0] = to_be32(id >> 32);
    reply->connection_id[1] = to_be32((u32)id);
    /* The pseudo header: addresses, protocol and length. */
    u32 sum = to_be16(PROTOCOL_UDP) + udp->len;
    if (family == IPV4) {
        struct ipv4 *ip = (void *)(data + offset);
        u32 address = ip->source;
        ip->source = ip->destination;
        ip->destination = address;
        ip->service = 0;
        ip->total_len = to_be16(sizeof(*ip) + sizeof(*udp) + reply_len);
        ip->id = 0;
        ip->fragment = 0;
        ip->time_to_live = TIME_TO_LIVE;
        ip->checksum = 0;
        ip->checksum = ~fold(add_words(0, ip, sizeof(*ip)));
        sum = add_words(sum, &ip->source, 8);
    } else {
        struct ipv6 *ip = (void *)(data + offset);
        ip->version_and_flow = to_be32(6u << 28);
        ip->payload_len = udp->len;
        ip->hop_limit = TIME_TO_LIVE;
#pragma unroll
        for (u32 word = 0; word < 4; word++) {
            u32 address = ip->source[word];
            ip->source[word] = ip->destination[word];
            ip->destination[word] = address;
        }
        sum = add_words(sum, ip->source, 32);
    }
    sum = add_words(sum, udp, sizeof(*udp));
    u16 checksum = ~fold(add_words(sum, reply, sizeof(*reply)));
    udp->checksum = checksum ? checksum : 0xffff;
    return 1;
}

/* A function for each offset: without CAP_PERFMON, offsets of pointers must be constants of the program. */
#define WRITE_REPLY(name, offset, family)                                                                              \
    NOINLINE int name(struct xdp_md *context, u32 present, u64 id, u32 transaction_id) {                               \
        return write_reply(context, present, id, transaction_id, offset, family);                                      \
    }

WRITE_REPLY(write_reply_v4, sizeof(struct ethernet), IPV4)
WRITE_REPLY(write_reply_v6, sizeof(struct ethernet), IPV6)
WRITE_REPLY(write_reply_vlan_v4, sizeof(struct ethernet) + sizeof(struct vlan), IPV4)
WRITE_REPLY(write_reply_vlan_v6, sizeof(struct ethernet) + sizeof(struct vlan), IPV6)

/* Answers a connect request with the frame in which it came. */
INLINE int connect(struct xdp_md *context, const struct interface *interface, const struct settings *settings,
                   const struct source *source, u32 offset, u32 present, u32 transaction_id, u32 len) {
    u64 id = connection_id(&settings->keys[0], source, settings->epoch);
    int has_vlan = offset != sizeof(struct ethernet), written;
    if (source->family == IPV4)
        written = has_vlan ? write_reply_vlan_v4(context, present, id, transaction_id)
                           : write_reply_v4(context, present, id, transaction_id);
    else
        written = has_vlan ? write_reply_vlan_v6(context, present, id, transaction_id)
                           : write_reply_v6(context, present, id, transaction_id);
    if (!written)
        return pass(context, interface);
    count_request(CONNECTED, source->family, len, sizeof(struct connect_reply));
    return count(context, interface, ANSWERED, XDP_TX);
}

/* Decides about a request to the tracker. `request` is its first 16 bytes or, if it is shorter, not read. */
INLINE int decide(struct xdp_md *context, const struct interface *interface, const struct settings *in,
                  const struct source *source, const struct request *request, u32 offset, u32 present, u32 len) {
    if (len < CONNECT_LEN)
        return drop(context, interface, TOO_SHORT, source->family, len);
    u64 id = (u64)to_be32(request->connection_id[0]) << 32 | to_be32(request->connection_id[1]);
    u32 action = to_be32(request->action), transaction_id = request->transaction_id, len_min;
    switch (action) {
    case ACTION_CONNECT:
        if (id != PROTOCOL_MAGIC)
            return drop(context, interface, BAD_MAGIC, source->family, len);
        len_min = CONNECT_LEN;
        break;
    case ACTION_ANNOUNCE:
        len_min = ANNOUNCE_LEN;
        break;
    case ACTION_ANNOUNCE_V6:
        len_min = ANNOUNCE_V6_LEN;
        break;
    case ACTION_SCRAPE:
        len_min = SCRAPE_LEN_MIN;
        break;
    default:
        return drop(context, interface, UNKNOWN_ACTION, source->family, len);
    }
    if (len < len_min)
        return drop(context, interface, TOO_SHORT, source->family, len);
    if (is_refused(in, source))
        return drop(context, interface, FORBIDDEN_NETWORK, source->family, len);
    if (action == ACTION_CONNECT && in->passes_connects)
        return deliver(context, interface, present);
    if (action == ACTION_CONNECT)
        return connect(context, interface, in, source, offset, present, transaction_id, len);
    if (accepts(in, source, id) || in->passes_wrong_ids)
        return deliver(context, interface, present);
    return drop(context, interface, WRONG_CONNECTION_ID, source->family, len);
}

/* Parses what follows the Ethernet header, which has `offset` bytes. */
INLINE int filter_packet(struct xdp_md *context, const struct interface *interface, const struct settings *in,
                         u32 offset, u16 type) {
    u8 *data = (u8 *)(long)context->data;
    void *end = (void *)(long)context->data_end;
    struct source source;
    struct udp *udp;
    u32 len;
    int is_ours;
    if (type == to_be16(ETHERTYPE_IPV4)) {
        struct ipv4 *ip = (void *)(data + offset);
        udp = (void *)(ip + 1);
        if ((void *)(udp + 1) > end)
            return pass(context, interface);
        len = to_be16(ip->total_len);
        if (ip->version_and_len != 0x45 || ip->protocol != PROTOCOL_UDP || (ip->fragment & to_be16(0x3fff)) ||
            len < sizeof(*ip) + sizeof(*udp) || fold(add_words(0, ip, sizeof(*ip))) != 0xffff ||
            is_special_v4(ip->source))
            return pass(context, interface);
        len -= sizeof(*ip);
        source.family = IPV4;
        source.words[0] = ip->source;
        source.words[1] = 0;
        is_ours = listens_on_v4(in, ip->destination, udp->destination) && !is_local_v4(in, ip->source);
    } else if (type == to_be16(ETHERTYPE_IPV6)) {
        struct ipv6 *ip = (void *)(data + offset);
        udp = (void *)(ip + 1);
        if ((void *)(udp + 1) > end)
            return pass(context, interface);
        len = to_be16(ip->payload_len);
        if ((ip->version_and_flow & to_be32(0xf0000000)) != to_be32(0x60000000) || ip->next_header != PROTOCOL_UDP ||
            len < sizeof(*udp) || is_special_v6(ip->source) || is_special_v6(ip->destination))
            return pass(context, interface);
        source.family = IPV6;
        source.words[0] = ip->source[0] | (u64)ip->source[1] << 32;
        source.words[1] = ip->source[2] | (u64)ip->source[3] << 32;
        is_ours = has_v6(ip->destination[0] | (u64)ip->destination[1] << 32,
                         ip->destination[2] | (u64)ip->destination[3] << 32, udp->destination) &&
                  !has_v6(source.words[0], source.words[1], 0);
    } else {
        return pass(context, interface);
    }
    /* Entries of local addresses have port 0. */
    if (!is_ours || udp->source == 0 || udp->destination == 0 || to_be16(udp->len) != len)
        return pass(context, interface);
    /* A packet that is longer than its frame has been cut off. Lengths are compared and not pointers, because adding the
       length of a packet to a pointer would need CAP_PERFMON. */
    u32 ip_len = source.family == IPV4 ? sizeof(struct ipv4) : sizeof(struct ipv6);
    u32 present = buffer_len(context);
    if (present < offset + ip_len + len)
        return pass(context, interface);
    len -= sizeof(*udp);
    struct request *request = (void *)(udp + 1);
    if (len >= CONNECT_LEN && (void *)(request + 1) > end)
        return pass(context, interface);
    return decide(context, interface, in, &source, request, offset, present, len);
}

/* Copies the interface that received a frame; returns whether it is one of the tracker's. */
INLINE int find_interface(const struct settings *in, u32 index, struct interface *found) {
    u64 entry = 0;
    /* Volatile, so that the compiler does not compute the address of an entry. */
#pragma unroll
    for (u32 number = 0; number < INLINE_INTERFACES; number++) {
        u64 value = *(const volatile u64 *)&in->interfaces[number];
        entry = in->indexes[number] == index ? value : entry;
    }
    if (entry == 0) {
        const u64 *value = value_at(&interfaces, index);
        if (!value)
            return 0;
        entry = *value;
    }
    __builtin_memcpy(found, &entry, sizeof(*found));
    return 1;
}

SECTION("xdp.frags") int filter(struct xdp_md *context) {
    struct ethernet *ethernet = (void *)(long)context->data;
    struct vlan *vlan = (void *)(ethernet + 1);
    void *end = (void *)(long)context->data_end;
    const u32 *number = value_at(&current, 0);
    if (!number)
        return XDP_PASS;
    const struct settings *in = value_at(&settings, *(volatile const u32 *)number);
    if (!in)
        return XDP_PASS;
    struct interface interface;
    if (!find_interface(in, context->ingress_ifindex, &interface))
        return XDP_PASS;
    /* No station has a multicast address as its own. */
    if ((void *)(vlan + 1) > end || (ethernet->source[0] & 1) || ethernet->destination[0] != interface.mac[0] ||
        ethernet->destination[1] != interface.mac[1] || ethernet->destination[2] != interface.mac[2])
        return pass(context, &interface);
    if (ethernet->type != to_be16(ETHERTYPE_VLAN))
        return filter_packet(context, &interface, in, sizeof(*ethernet), ethernet->type);
    return filter_packet(context, &interface, in, sizeof(*ethernet) + sizeof(*vlan), vlan->type);
}

char SECTION("license") filter_license[] = "MIT";
