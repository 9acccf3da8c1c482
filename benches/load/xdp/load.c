// SPDX-License-Identifier: MIT

/*
 * XDP programs of `tsubame-load --xdp`: `generate` runs on the frames of BPF_PROG_TEST_RUN (live frames mode), writes a
 * request into each and sends it; `receive` counts the replies on the same interface.
 *
 * `udp/bpf/compile` compiles them to load.o, which is part of the sources.
 */

#include <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const adjust_tail)(struct xdp_md *context, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;
static u64 (*const time_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static u32 (*const random_word)(void) = (void *)BPF_FUNC_get_prandom_u32;

/* The layout of the maps is repeated in `program.rs`. */

#define CLIENTS_MAX 65536

/* Classes of latency: eight for each power of two, in units of 1,024 ns. */
#define LATENCIES 256

struct load {
    u16 server_mac[3], client_mac[3];
    /* In network byte order. */
    u32 server;
    /* In host byte order. */
    u32 first_client, clients;
    u32 torrents, numwant;
    /* Maximum number of unanswered requests (closed loop). */
    u32 in_flight;
    /* Time between two requests (open loop); 0 in closed loop. */
    u32 interval_ns;
    /* A random word below the first makes a connect, below the second an announce, any other an announce with an
       invalid connection id. ~0 means that no word is above: with `connect_below` ~0 all are connects, with
       `announce_below` ~0 none has an invalid id. */
    u32 connect_below, announce_below;
    /* In network byte order. */
    u16 port;
    u16 padding;
};

/* Positions in `totals`. `generate` writes those up to PROGRESS, `receive` those from CONNECTS on. GIVEN_UP: number of
   requests that are not waited for any more; QUOTA: number of requests that may be sent before replies are counted again;
   NEXT_AT: time of the next request in open loop; PROGRESS, PROGRESS_AT: number of replies at its last change, and the time
   at which that was noticed. */
enum { CONNECTS_SENT, ANNOUNCES_SENT, FORGED_SENT, GIVEN_UP, QUOTA, NEXT_AT, PROGRESS_AT, PROGRESS, CONNECTS, ANNOUNCES, OTHERS, PEERS, TOTALS };

/* A counter in a cache line of its own, as the two programs run on different cores. */
struct total {
    u64 count, unused[7];
};

struct map {
    u32 type, key_size, value_size, max_entries, flags;
};

struct map SECTION("maps") load = {BPF_MAP_TYPE_ARRAY, sizeof(u32), sizeof(struct load), 1, 0};
struct map SECTION("maps") totals = {BPF_MAP_TYPE_ARRAY, sizeof(u32), sizeof(struct total), TOTALS, 0};
/* Connection ids of the clients, in network byte order. */
struct map SECTION("maps") ids = {BPF_MAP_TYPE_ARRAY, sizeof(u32), sizeof(u64), CLIENTS_MAX, 0};
struct map SECTION("maps") latencies = {BPF_MAP_TYPE_ARRAY, sizeof(u32), sizeof(u64), LATENCIES, 0};

struct frame {
    u16 to_mac[3], from_mac[3], type;
    u8 version_and_len, service;
    u16 total_len, id, fragment;
    u8 time_to_live, protocol;
    u16 checksum;
    u32 source, destination;
    u16 source_port, destination_port, udp_len, udp_checksum;
} __attribute__((packed, aligned(2)));

struct connect {
    u64 magic;
    u32 action, transaction_id;
} __attribute__((packed, aligned(2)));

struct announce {
    u64 connection_id;
    u32 action, transaction_id;
    u32 info_hash[5];
    u32 peer_id[5];
    u32 downloaded[2], left[2], uploaded[2];
    u32 event, address, key, numwant;
    u16 port;
} __attribute__((packed, aligned(2)));

#define CONNECT_FRAME (sizeof(struct frame) + sizeof(struct connect))
#define ANNOUNCE_FRAME (sizeof(struct frame) + sizeof(struct announce))

_Static_assert(sizeof(struct announce) == 98, "an announce has 98 bytes");

#define to_be16 __builtin_bswap16
#define to_be32 __builtin_bswap32
#define to_be64 __builtin_bswap64

/* Time without a reply after which unanswered requests are given up. */
#define GIVE_UP_NS 20000000

INLINE u64 *total(u32 position) {
    return map_lookup(&totals, &position);
}

INLINE u32 mix(u32 value) {
    value ^= value >> 16;
    value *= 0x7feb352d;
    value ^= value >> 15;
    value *= 0x846ca68b;
    return value ^ value >> 16;
}

/* Returns whether another request may be sent in closed loop. The quota is computed from the number of replies only when the
   previous one is used up, because reading the counters that another core writes is slow. */
INLINE int may_send(const struct load *in, u64 sent) {
    u64 *quota = total(QUOTA);
    if (!quota)
        return 0;
    if (*quota > 0) {
        *quota -= 1;
        return 1;
    }
    u64 *connects = total(CONNECTS), *announces = total(ANNOUNCES), *others = total(OTHERS);
    u64 *given_up = total(GIVEN_UP), *progress_at = total(PROGRESS_AT), *progress = total(PROGRESS);
    if (!connects || !announces || !others || !given_up || !progress_at || !progress)
        return 0;
    u64 answered = *(volatile u64 *)connects + *(volatile u64 *)announces + *(volatile u64 *)others;
    u64 unanswered = sent - *given_up - answered;
    if (unanswered < in->in_flight) {
        *quota = in->in_flight - unanswered - 1;
        return 1;
    }
    u64 now = time_ns();
    if (answered != *progress) {
        *progress = answered;
        *progress_at = now;
    } else if (now - *progress_at > GIVE_UP_NS) {
        *given_up = sent - answered;
        *progress_at = now;
    }
    return 0;
}

/* Returns whether the next request is due in open loop. After a pause, at most 32 are sent at once: the queues of virtual
   Ethernet are short. */
INLINE int is_due(const struct load *in) {
    u64 *next_at = total(NEXT_AT), now = time_ns(), burst = 32 * (u64)in->interval_ns;
    if (!next_at || now < *next_at)
        return 0;
    *next_at = (*next_at + burst < now ? now - burst : *next_at) + in->interval_ns;
    return 1;
}

INLINE void write_headers(struct frame *frame, const struct load *in, u32 client, u32 payload_len) {
#pragma unroll
    for (u32 word = 0; word < 3; word++) {
        frame->to_mac[word] = in->server_mac[word];
        frame->from_mac[word] = in->client_mac[word];
    }
    frame->type = to_be16(0x0800);
    frame->version_and_len = 0x45;
    frame->service = 0;
    frame->total_len = to_be16(28 + payload_len);
    frame->id = 0;
    frame->fragment = to_be16(0x4000);
    frame->time_to_live = 64;
    frame->protocol = 17;
    frame->checksum = 0;
    frame->source = to_be32(in->first_client + client);
    frame->destination = in->server;
    frame->source_port = to_be16(1024 + (client & 0x3fff));
    frame->destination_port = in->port;
    frame->udp_len = to_be16(8 + payload_len);
    frame->udp_checksum = 0;
    u32 sum = 0;
    const u16 *words = (const u16 *)&frame->version_and_len;
#pragma unroll
    for (u32 word = 0; word < 10; word++)
        sum += words[word];
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    frame->checksum = ~sum;
}

SECTION("xdp") int generate(struct xdp_md *context) {
    u32 zero = 0;
    struct load *in = map_lookup(&load, &zero);
    u64 *connects_sent = total(CONNECTS_SENT), *announces_sent = total(ANNOUNCES_SENT), *forged_sent = total(FORGED_SENT);
    if (!in || !connects_sent || !announces_sent || !forged_sent)
        return XDP_DROP;
    u32 kind = in->connect_below == ~0u ? 0 : random_word();
    u64 sent = *connects_sent + *announces_sent;
    if (in->interval_ns) {
        if (!is_due(in))
            return XDP_DROP;
    } else if (kind < in->announce_below && !may_send(in, sent)) {
        if (in->announce_below == ~0u)
            return XDP_DROP;
        kind = ~0u;
    }
    int is_forged = kind >= in->announce_below && in->announce_below != ~0u;
    u32 client = (is_forged ? mix(*forged_sent) : sent / 2) % (in->clients ? in->clients : 1);
    u64 *id = map_lookup(&ids, &client);
    if (!id)
        return XDP_DROP;
    u32 time = time_ns() >> 10;
    if (!is_forged && (kind < in->connect_below || *id == 0)) {
        if (adjust_tail(context, (int)CONNECT_FRAME - (int)ANNOUNCE_FRAME) != 0)
            return XDP_DROP;
        struct frame *frame = (void *)(long)context->data;
        struct connect *connect = (void *)(frame + 1);
        if ((void *)(connect + 1) > (void *)(long)context->data_end)
            return XDP_DROP;
        write_headers(frame, in, client, sizeof(*connect));
        connect->magic = to_be64(0x41727101980ULL);
        connect->action = 0;
        connect->transaction_id = time;
        *connects_sent += 1;
        return XDP_TX;
    }
    struct frame *frame = (void *)(long)context->data;
    struct announce *announce = (void *)(frame + 1);
    if ((void *)(announce + 1) > (void *)(long)context->data_end)
        return XDP_DROP;
    write_headers(frame, in, client, sizeof(*announce));
    u32 torrent = random_word() % (in->torrents ? in->torrents : 1);
    announce->connection_id = is_forged ? (u64)random_word() << 32 | random_word() : *id;
    announce->action = to_be32(1);
    announce->transaction_id = time;
#pragma unroll
    for (u32 word = 0; word < 5; word++) {
        announce->info_hash[word] = mix(torrent * 5 + word + 1);
        announce->peer_id[word] = client;
    }
#pragma unroll
    for (u32 word = 0; word < 2; word++)
        announce->downloaded[word] = announce->uploaded[word] = 0;
    announce->left[0] = 0;
    announce->left[1] = client & 1;
    announce->event = announce->address = announce->key = 0;
    announce->numwant = to_be32(in->numwant);
    announce->port = to_be16(6881);
    *(is_forged ? forged_sent : announces_sent) += 1;
    return XDP_TX;
}

SECTION("xdp") int receive(struct xdp_md *context) {
    struct frame *frame = (void *)(long)context->data;
    struct connect *reply = (void *)(frame + 1);
    u32 zero = 0;
    struct load *in = map_lookup(&load, &zero);
    if (!in || (void *)(reply + 1) > (void *)(long)context->data_end || frame->type != to_be16(0x0800) ||
        frame->version_and_len != 0x45 || frame->protocol != 17 || frame->source != in->server ||
        frame->source_port != in->port)
        return XDP_PASS;
    /* A reply starts with the action and the transaction id. */
    u32 action = reply->magic & 0xffffffff, sent_at = reply->magic >> 32;
    u64 *count = total(action == 0 ? CONNECTS : action == to_be32(1) ? ANNOUNCES : OTHERS), *peers = total(PEERS);
    if (!count || !peers)
        return XDP_DROP;
    __sync_fetch_and_add(count, 1);
    if (action == 0) {
        u32 client = to_be32(frame->destination) - in->first_client;
        u64 *id = map_lookup(&ids, &client);
        if (id)
            *id = reply->action | (u64)reply->transaction_id << 32;
    } else if (action == to_be32(1)) {
        __sync_fetch_and_add(peers, ((u32)to_be16(frame->udp_len) - 28) / 6u);
    }
    u32 latency = (u32)(time_ns() >> 10) - sent_at, shift = 0;
#pragma unroll
    for (u32 bits = 0; bits < 28; bits++)
        if (latency >> shift >= 16)
            shift++;
    u32 class = shift * 8 + (latency >> shift);
    u64 *latency_count = map_lookup(&latencies, &class);
    if (latency_count)
        __sync_fetch_and_add(latency_count, 1);
    return XDP_DROP;
}

char SECTION("license") load_license[] = "MIT";
