// A switch in user space: one TUN device in each network namespace, and between each two of them a
// line with delay, jitter and loss that can be cut. Each port has a rate up and down.
//
//     switch NETNS...        one port a namespace, numbered from 0; the device is called net0
//
// It moves IP packets, not Ethernet packets: the kernel's table of Ethernet neighbours is one for all
// namespaces and too small for dozens of them. Port N has the address 10.77.(N / 128).(N % 128 + 1).
//
// Commands come on stdin, a line each, and are answered on stdout with `ok` or `error WHY`. At the
// end of stdin the switch ends, so it never outlives the program that started it.
//
//     rate PORT UP_MBIT DOWN_MBIT QUEUE_MS    0: no limit; a queue holds so much at the rate
//     line FROM TO DELAY_MS JITTER_MS LOSS    one way; LOSS is a chance from 0 to 1
//     cut FROM TO 0|1                         one way; 1: nothing gets through
//     seed NUMBER                             of the chances
//     count                                   answered with a line for each port, then ok
//
// A packet leaves the sender at its up rate, spends the line's delay, and enters the receiver at its
// down rate. Packets between two ports never overtake each other. The switch looks at the time each
// half a millisecond while there is traffic, so that packets are read and written in batches.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <math.h>
#include <net/if.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
    PORTS_MAX = 128,
    PACKET_MAX = 9216,
    IP_HEADER = 20,           // bytes at least
    READS_AT_ONCE = 64,       // of one port, before the others get their turn
    COMMAND_MAX = 256,
    STDIN = PORTS_MAX,        // what epoll says instead of a port's number
};

static const double TICK = 0.5e-3; // seconds

typedef struct {
    int device;                       // the device's file descriptor
    double up, down;                  // bytes a second; 0: no limit
    double queue;                     // seconds that a packet may wait for its turn
    double up_free, down_free;        // when the last packet so far will be through
    uint64_t sent_bytes, sent_packets; // that came from the namespace
    uint64_t got_bytes, got_packets;   // that were handed to it
    uint64_t full, lost, cut;         // packets dropped: a queue was full, by chance, by a cut
} Port;

typedef struct {
    double delay, jitter;             // seconds
    double loss;
    bool cut;
    double last;                      // when the newest packet comes out at the end
} Line;

typedef struct {
    double time;
    uint64_t order;                   // ties go by arrival
    int from, to;
    int length;
    bool is_paced;                    // has passed the receiver's down rate
    uint8_t *bytes;
} Packet;

static Port ports[PORTS_MAX];
static int port_count;
static Line lines[PORTS_MAX][PORTS_MAX];

static bool is_port(int number)
{
    return number >= 0 && number < port_count;
}

// ---- time and chance --------------------------------------------------------------------------

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint64_t random_state = 88172645463325252u;

static double chance(void) // from 0 to 1; xorshift64
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (random_state >> 11) * (1.0 / 9007199254740992.0);
}

// ---- packets on their way, a heap by time ------------------------------------------------------

static Packet *heap;
static size_t heap_size, heap_room;
static uint64_t orders;

static bool is_before(const Packet *a, const Packet *b)
{
    return a->time < b->time || (a->time == b->time && a->order < b->order);
}

static void swap(size_t i, size_t j)
{
    Packet kept = heap[i];
    heap[i] = heap[j];
    heap[j] = kept;
}

static void push(Packet packet)
{
    if (heap_size == heap_room) {
        heap_room = heap_room ? 2 * heap_room : 1024;
        heap = realloc(heap, heap_room * sizeof *heap);
        if (!heap) {
            perror("out of memory");
            exit(1);
        }
    }
    size_t at = heap_size++;
    heap[at] = packet;
    while (at && is_before(&heap[at], &heap[(at - 1) / 2])) {
        swap(at, (at - 1) / 2);
        at = (at - 1) / 2;
    }
}

static Packet pop(void)
{
    Packet first = heap[0];
    heap[0] = heap[--heap_size];
    for (size_t at = 0;;) {
        size_t least = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2; child++)
            if (child < heap_size && is_before(&heap[child], &heap[least]))
                least = child;
        if (least == at)
            return first;
        swap(at, least);
        at = least;
    }
}

// ---- what happens to a packet ------------------------------------------------------------------

// When a packet that comes at `time` is through; below 0 if the queue is full.
static double pace(double time, int length, double rate, double queue, double *free_at)
{
    if (rate <= 0)
        return time;
    double start = *free_at > time ? *free_at : time;
    if (start - time > queue)
        return -1;
    return *free_at = start + length / rate;
}

static void send_over(int from, int to, const uint8_t *bytes, int length, double time)
{
    Line *line = &lines[from][to];
    if (line->cut) {
        ports[from].cut++;
        return;
    }
    if (line->loss > 0 && chance() < line->loss) {
        ports[from].lost++;
        return;
    }
    double comes = time + line->delay + (line->jitter > 0 ? line->jitter * chance() : 0);
    if (comes < line->last)
        comes = line->last;
    line->last = comes;
    uint8_t *copy = malloc(length);
    if (!copy)
        return; // as good as lost
    memcpy(copy, bytes, length);
    push((Packet){.time = comes, .order = orders++, .from = from, .to = to, .length = length,
                 .bytes = copy});
}

static int port_of(const uint8_t *packet) // that it is for; -1: for nobody here
{
    static const uint8_t ours[2] = {10, 77};
    const uint8_t *target = packet + 16;
    int number = target[2] * 128 + target[3] - 1;
    return !memcmp(target, ours, 2) && is_port(number) ? number : -1;
}

static void take(int from, const uint8_t *bytes, int length, double time)
{
    Port *port = &ports[from];
    port->sent_bytes += length;
    port->sent_packets++;
    double sent = pace(time, length, port->up, port->queue, &port->up_free);
    if (sent < 0) {
        port->full++;
        return;
    }
    int to = port_of(bytes);
    if (to >= 0 && to != from)
        send_over(from, to, bytes, length, sent);
}

static void hand_over(Packet packet, double time)
{
    Port *port = &ports[packet.to];
    if (!packet.is_paced) {
        double through = pace(packet.time, packet.length, port->down, port->queue, &port->down_free);
        if (through < 0) {
            port->full++;
            free(packet.bytes);
            return;
        }
        if (through > time) {
            packet.time = through;
            packet.is_paced = true;
            push(packet);
            return;
        }
    }
    if (write(port->device, packet.bytes, packet.length) == packet.length) {
        port->got_bytes += packet.length;
        port->got_packets++;
    } else {
        port->full++;
    }
    free(packet.bytes);
}

// ---- commands ---------------------------------------------------------------------------------

static void count(void)
{
    for (int i = 0; i < port_count; i++) {
        Port *p = &ports[i];
        printf("%lu %lu %lu %lu %lu %lu %lu\n", p->sent_bytes, p->sent_packets, p->got_bytes,
               p->got_packets, p->full, p->lost, p->cut);
    }
}

static const char *obey(const char *command) // what is wrong, or NULL
{
    int a, b, flag;
    double x, y, z;
    unsigned long seed;
    if (sscanf(command, "rate %d %lf %lf %lf", &a, &x, &y, &z) == 4) {
        if (!is_port(a) || x < 0 || y < 0 || z < 0)
            return "out of range";
        ports[a].up = x * 1e6 / 8;
        ports[a].down = y * 1e6 / 8;
        ports[a].queue = z / 1e3;
    } else if (sscanf(command, "line %d %d %lf %lf %lf", &a, &b, &x, &y, &z) == 5) {
        if (!is_port(a) || !is_port(b) || x < 0 || y < 0 || z < 0 || z > 1)
            return "out of range";
        lines[a][b].delay = x / 1e3;
        lines[a][b].jitter = y / 1e3;
        lines[a][b].loss = z;
    } else if (sscanf(command, "cut %d %d %d", &a, &b, &flag) == 3) {
        if (!is_port(a) || !is_port(b))
            return "out of range";
        lines[a][b].cut = flag;
    } else if (sscanf(command, "seed %lu", &seed) == 1) {
        random_state = seed | 1; // not 0, where the generator would stand still
    } else if (!strcmp(command, "count")) {
        count();
    } else {
        return "no such command";
    }
    return NULL;
}

static bool read_commands(void) // false at the end of stdin
{
    static char text[COMMAND_MAX];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, text + length, sizeof text - length);
    if (got <= 0)
        return got < 0 && (errno == EINTR || errno == EAGAIN);
    length += got;
    char *end;
    while ((end = memchr(text, '\n', length))) {
        *end = 0;
        const char *wrong = obey(text);
        printf(wrong ? "error %s\n" : "ok\n", wrong);
        length -= end + 1 - text;
        memmove(text, end + 1, length);
    }
    fflush(stdout);
    return length < sizeof text; // a line that does not fit ends it all
}

// ---- the loop ---------------------------------------------------------------------------------

static int enter(const char *path)
{
    int space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET)) {
        perror(path);
        exit(1);
    }
    return close(space);
}

static int open_device(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "/var/run/netns/%s", name);
    enter(path);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq wanted = {.ifr_name = "net0", .ifr_flags = IFF_TUN | IFF_NO_PI};
    if (device < 0 || ioctl(device, TUNSETIFF, &wanted) < 0) {
        perror("/dev/net/tun");
        exit(1);
    }
    return device;
}

static void watch(int poll, int file, uint32_t what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = what};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, file, &event)) {
        perror("epoll_ctl");
        exit(1);
    }
}

static struct timespec as_timespec(double seconds)
{
    time_t whole = (time_t)seconds;
    return (struct timespec){whole, (long)((seconds - whole) * 1e9)};
}

// Until something can be read, or the first packet on its way is due; then to the end of the tick.
static int wait_for(int poll, struct epoll_event *events, int room)
{
    double left = heap_size ? heap[0].time - now() : 0;
    struct timespec most = as_timespec(left > 0 ? left : 0);
    int ready = epoll_pwait2(poll, events, room, heap_size ? &most : NULL, NULL);
    struct timespec tick = as_timespec((floor(now() / TICK) + 1) * TICK);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &tick, NULL);
    return ready;
}

static void read_port(int from, double time)
{
    static uint8_t bytes[PACKET_MAX];
    for (int i = 0; i < READS_AT_ONCE; i++) {
        ssize_t length = read(ports[from].device, bytes, sizeof bytes);
        if (length <= 0)
            return;
        if (length >= IP_HEADER && bytes[0] >> 4 == 4)
            take(from, bytes, length, time);
    }
}

int main(int count, char **names)
{
    port_count = count - 1;
    if (port_count < 1 || port_count > PORTS_MAX) {
        fprintf(stderr, "usage: switch NETNS... (1 to %d)\n", PORTS_MAX);
        return 2;
    }
    int poll = epoll_create1(EPOLL_CLOEXEC);
    watch(poll, STDIN_FILENO, STDIN);
    for (int i = 0; i < port_count; i++) {
        ports[i].device = open_device(names[i + 1]);
        watch(poll, ports[i].device, i);
    }
    puts("ok");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[PORTS_MAX + 1];
        int ready = wait_for(poll, events, PORTS_MAX + 1);
        double time = now();
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u32 != STDIN)
                read_port(events[i].data.u32, time);
            else if (!read_commands())
                return 0;
        }
        while (heap_size && heap[0].time <= time)
            hand_over(pop(), time);
    }
}
