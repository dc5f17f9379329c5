/* The load generator: plays all clients of one server from one thread, and counts the records that reach them.

   load PORT DIALECT PREFIX MARKS_PER_CALL, then commands on standard input, each answered by one line of JSON:
     open N          open connections until there are N, each through its dialect's handshake and subscription
     stall N         given before `open`: the first N have small buffers and are not read once they are open
     arm             forget what was counted
     expect K T      wait until each connection that reads has got K records, for T seconds at most
     call T          for T seconds, each connection sends a request as soon as the last one is answered
     cut             reset all connections
     resume K B S T  open all again, connection i from B + i % S changes before its position; wait until each has K + B + i % S
   Records are known by their mark, whatever the framing is. Latencies are in microseconds.
   Pinned to a core of its own it does not sleep while it waits for records: else the server would pay for waking it,
   which in a virtual machine costs as much as a delivery, and the slower a server is the more often. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

#define BUFFER 262144
#define TEXT_MAX 8192 /* bytes kept of what is read while a connection opens */
#define SAMPLES_MAX 4000000
#define CHANGES_MAX 1000000 /* numbers that six digits can tell apart */
#define PERCENTILES 101
#define IN_FLIGHT 512

/* How a dialect goes: over which transport, in which framing, and whether it subscribes as Backsync's clients do. */
struct dialect {
    const char *name;
    enum { WEBSOCKET, STREAM } transport;
    enum { PLAIN, SOCKJS, ENGINEIO } framing;
    int subscribes;
    const char *request; /* %1: prefix, %2: session */
};

static const struct dialect DIALECTS[] = {
    {"ws", WEBSOCKET, PLAIN, 0, "GET %s/ HTTP/1.1"},
    {"sockjs", WEBSOCKET, SOCKJS, 0, "GET %s/000/%s/websocket HTTP/1.1"},
    {"socketio", WEBSOCKET, ENGINEIO, 0, "GET %s/socket.io/?EIO=4&transport=websocket HTTP/1.1"},
    {"backsync", WEBSOCKET, PLAIN, 1, "GET %s/websocket HTTP/1.1"},
    {"backsync-sockjs", WEBSOCKET, SOCKJS, 1, "GET %s/000/%s/websocket HTTP/1.1"},
    {"xhr-streaming", STREAM, SOCKJS, 0, "POST %s/000/%s/xhr_streaming HTTP/1.1"},
    {"eventsource", STREAM, SOCKJS, 0, "GET %s/000/%s/eventsource HTTP/1.1"},
    {"backsync-xhr-streaming", STREAM, SOCKJS, 1, "POST %s/000/%s/xhr_streaming HTTP/1.1"},
    {"backsync-eventsource", STREAM, SOCKJS, 1, "GET %s/000/%s/eventsource HTTP/1.1"},
};

enum stage { CLOSED, CONNECTING, HEAD, OPENING, LIVE, STALLED };

struct connection {
    int fd;
    unsigned index;
    enum stage stage;
    int end_of_head; /* how many bytes of CR LF CR LF have been seen */
    uint8_t head[14];
    uint8_t head_length, opcode, in_payload, is_kept;
    uint64_t payload_left;
    char *text; /* of the message that is being read, while opening and of control frames */
    size_t text_length;
    int digits; /* digits still to come of a mark */
    unsigned mark_number;
    uint64_t mark_at;
    unsigned marks;        /* records since `arm` */
    unsigned expected;     /* by `resume` */
    unsigned call_marks;   /* records of the call under way */
    uint64_t called_at;
    unsigned calls;
    char epoch[40];
    uint64_t seq;
};

static const struct dialect *dialect;
static const char *prefix;
static int epoll_fd, port;
static unsigned marks_per_call;
static struct connection *all;
static unsigned wanted, stalled, begun, opening, live, lost, generation;
static unsigned resume_back, resume_spread;
static int resuming, calling;
static uint64_t total, began, last_mark, due;
static uint32_t *samples;
static size_t sample_count;
static uint32_t *last_of; /* by the number of a change: the latency of the last connection it reached */
static unsigned changes;
static uint64_t calls_done;

static enum { NOTHING, OPEN, EXPECT, CALL, RESUME } pending;
static uint64_t target, deadline;

static void sample(uint64_t nanoseconds) {
    if (sample_count < SAMPLES_MAX) samples[sample_count++] = (uint32_t)(nanoseconds / 1000);
}

static void reset(void) {
    total = 0, sample_count = 0, calls_done = 0, last_mark = 0;
    memset(last_of, 0, changes * sizeof *last_of);
    changes = 0;
    for (unsigned i = 0; i < wanted; i++) all[i].marks = 0, all[i].call_marks = 0;
}

/* Sending */

static void close_connection(struct connection *c, int reset_it) {
    if (c->stage == CLOSED) return;
    if (c->stage >= LIVE) live--;
    else opening--;
    struct linger now = {1, 0};
    if (reset_it) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(c->fd);
    free(c->text);
    c->text = NULL;
    c->stage = CLOSED;
}

static void send_all(struct connection *c, const void *bytes, size_t length) {
    if (send(c->fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length) {
        lost++;
        close_connection(c, 1);
    }
}

static void send_frame(struct connection *c, uint8_t opcode, const char *text, size_t length) {
    static uint8_t frame[BUFFER];
    static const uint8_t mask[4] = {0x5a, 0xc3, 0x17, 0x88};
    size_t head = write_head(frame, opcode, length, 0x80);
    memcpy(frame + head, mask, 4);
    for (size_t i = 0; i < length; i++) frame[head + 4 + i] = (uint8_t)text[i] ^ mask[i & 3];
    send_all(c, frame, head + 4 + length);
}

/* `texts` as an array of JSON strings, as SockJS clients upload them. */
static size_t quote(char *out, const char *const *texts, int count) {
    char *at = out;
    *at++ = '[';
    for (int i = 0; i < count; i++) {
        if (i) *at++ = ',';
        *at++ = '"';
        for (const char *p = texts[i]; *p; p++) {
            if (*p == '"' || *p == '\\') *at++ = '\\';
            *at++ = *p;
        }
        *at++ = '"';
    }
    *at++ = ']';
    *at = 0;
    return (size_t)(at - out);
}

/* One upload of a session that receives over HTTP, by a socket that all share; setting up only. */
static void upload(struct connection *c, const char *body, size_t length) {
    static int shared = -1;
    char request[4096];
    int size = snprintf(request, sizeof request,
                        "POST %s/000/s%u-%u/xhr_send HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
                        "Content-Length: %zu\r\n\r\n%s", prefix, generation, c->index, length, body);
    for (int try = 0; try < 2; try++) {
        if (shared < 0) {
            struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
            to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            shared = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(shared, (struct sockaddr *)&to, sizeof to)) die("connect", strerror(errno));
        }
        char answer[2048];
        ssize_t got = 0;
        if (send(shared, request, (size_t)size, MSG_NOSIGNAL) == size) got = recv(shared, answer, sizeof answer - 1, 0);
        if (got > 0) {
            answer[got] = 0;
            if (!strstr(answer, " 204 ")) die("xhr_send was answered", "with another status than 204");
            return;
        }
        close(shared);
        shared = -1;
    }
    die("xhr_send", "was not answered");
}

static void send_texts(struct connection *c, const char *const *texts, int count) {
    char framed[8192];
    size_t length;
    if (dialect->framing == SOCKJS) {
        length = quote(framed, texts, count);
        if (dialect->transport == STREAM) upload(c, framed, length);
        else send_frame(c, 1, framed, length);
        return;
    }
    for (int i = 0; i < count && c->stage != CLOSED; i++) send_frame(c, 1, texts[i], strlen(texts[i]));
}

static void subscribe(struct connection *c) {
    char hello[256], item[512], since[128] = "", room[64] = "{}";
    const char *model = marks_per_call ? "Note" : "Item";
    if (resuming)
        sprintf(since, ",\"since\":{\"epoch\":\"%s\",\"seq\":%llu}", c->epoch,
                (unsigned long long)(c->seq - resume_back - c->index % resume_spread));
    if (marks_per_call) sprintf(room, "{\"room\":\"n%04u\"}", c->index);
    sprintf(hello, "{\"id\":1,\"event\":\"$:hello\",\"data\":{\"version\":1,\"client\":\"c%d-%u\"}}", getpid(), c->index);
    sprintf(item, "{\"id\":2,\"event\":\"%s:subscribe\",\"data\":%s,\"snapshot\":false%s}", model, room, since);
    const char *texts[] = {hello, item};
    send_texts(c, texts, 2);
}

static void call(struct connection *c) {
    char id[32], room[32] = "", record[RECORD_SIZE + 1], text[512];
    const char *texts[] = {text};
    c->called_at = now_ns();
    c->call_marks = 0;
    c->calls++;
    sprintf(id, "n%04u", c->index);
    sprintf(room, "\"room\":\"n%04u\",", c->index);
    write_record(record, id, room, c->calls, c->called_at);
    if (dialect->framing == ENGINEIO) sprintf(text, "42[\"Note:upsert\",%s]", record);
    else sprintf(text, "{\"id\":%u,\"event\":\"Note:upsert\",\"data\":%s}", c->calls + 2, record);
    send_texts(c, texts, 1);
}

/* Receiving */

static void became_live(struct connection *c) {
    c->stage = LIVE;
    opening--;
    live++;
    free(c->text);
    c->text = NULL;
    if (c->index < stalled) {
        c->stage = STALLED;
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    }
}

/* Where the value of a field begins, however often its quotes are escaped. */
static const char *field(const char *text, const char *name) {
    const char *found = strstr(text, name);
    if (!found) return NULL;
    found += strlen(name);
    return found + strspn(found, "\\\":");
}

/* A message, or in streams all that has come, while the connection opens. */
static void on_opening(struct connection *c, const char *text) {
    if (dialect->framing == ENGINEIO) {
        if (text[0] == '0') send_frame(c, 1, "40", 2);
        else if (strncmp(text, "40", 2) == 0) became_live(c);
        return;
    }
    int is_greeted = dialect->framing == PLAIN || c->expected == ~0u;
    if (!is_greeted && (dialect->transport == WEBSOCKET ? text[0] == 'o' : strstr(text, "\no\n") || strstr(text, "data: o\r"))) {
        if (!dialect->subscribes) {
            became_live(c);
            return;
        }
        c->expected = ~0u; /* greeted */
        subscribe(c);
        return;
    }
    const char *mode = field(text, "mode");
    if (mode) {
        const char *epoch = field(mode, "epoch"), *seq = field(mode, "seq");
        if (epoch && seq) {
            if (resuming && strncmp(mode, "resume", 6)) die("a client that resumes got", "a snapshot");
            snprintf(c->epoch, sizeof c->epoch, "%.*s", (int)strcspn(epoch, "\\\""), epoch);
            if (!resuming) c->seq = strtoull(seq, NULL, 10);
            became_live(c);
        }
    } else if (strstr(text, "error")) {
        fprintf(stderr, "%s\n", text);
        die("a subscription", "was refused");
    }
}

static void on_mark(struct connection *c) {
    uint64_t now = now_ns();
    if (c->stage < LIVE && !resuming) return;
    total++;
    c->marks++;
    last_mark = now;
    if (calling && ++c->call_marks == marks_per_call) {
        calls_done++;
        sample(now - c->called_at);
        if (now < deadline) call(c);
        else calling--;
        return;
    }
    if (marks_per_call) return;
    uint64_t latency = now > c->mark_at ? now - c->mark_at : 0;
    sample(latency);
    if (c->mark_number < CHANGES_MAX) {
        if (c->mark_number >= changes) changes = c->mark_number + 1;
        uint32_t microseconds = (uint32_t)(latency / 1000);
        if (microseconds > last_of[c->mark_number]) last_of[c->mark_number] = microseconds;
    }
}

static void scan(struct connection *c, const uint8_t *bytes, size_t length) {
    const uint8_t *end = bytes + length;
    while (bytes < end) {
        if (!c->digits) {
            bytes = memchr(bytes, MARK, (size_t)(end - bytes));
            if (!bytes) return;
            bytes++;
            c->digits = MARK_DIGITS;
            c->mark_number = 0;
            c->mark_at = 0;
            continue;
        }
        unsigned digit = *bytes++ - '0';
        if (digit > 9) continue; /* the border of two chunks */
        if (c->digits > MARK_DIGITS - NUMBER_DIGITS) c->mark_number = c->mark_number * 10 + digit;
        else c->mark_at = c->mark_at * 10 + digit;
        if (!--c->digits) {
            on_mark(c);
            if (c->stage == CLOSED) return;
        }
    }
}

static void keep(struct connection *c, const uint8_t *bytes, size_t length) {
    if (!c->text && !(c->text = malloc(TEXT_MAX + 1))) die("no", "memory");
    if (length > TEXT_MAX - c->text_length) length = TEXT_MAX - c->text_length;
    memcpy(c->text + c->text_length, bytes, length);
    c->text_length += length;
    c->text[c->text_length] = 0;
}

static void message_ended(struct connection *c) {
    if (c->opcode == 9) {
        send_frame(c, 10, c->text ? c->text : "", c->text_length);
    } else if (c->opcode == 8) {
        lost++;
        close_connection(c, 1);
        return;
    } else if (c->stage == OPENING) {
        if (c->text_length) on_opening(c, c->text);
    } else if (dialect->framing == ENGINEIO && c->text_length == 1 && c->text[0] == '2') {
        send_frame(c, 1, "3", 1);
    }
    if (c->text && c->stage != OPENING) free(c->text), c->text = NULL;
    c->text_length = 0;
}

static void read_frames(struct connection *c, const uint8_t *bytes, size_t length) {
    while (length && c->stage != CLOSED) {
        if (!c->in_payload) {
            c->head[c->head_length++] = *bytes++;
            length--;
            if (c->head_length < 2) continue;
            unsigned size = c->head[1] & 127;
            unsigned needed = size == 126 ? 4 : size == 127 ? 10 : 2;
            if (c->head_length < needed) continue;
            uint64_t left = size;
            if (needed > 2) {
                left = 0;
                for (unsigned i = 2; i < needed; i++) left = left << 8 | c->head[i];
            }
            c->payload_left = left;
            c->opcode = c->head[0] & 15;
            c->head_length = 0;
            c->in_payload = 1;
            c->text_length = 0;
            c->is_kept = c->opcode >= 8 || c->stage == OPENING || (dialect->framing == ENGINEIO && left == 1);
        }
        size_t here = length < c->payload_left ? length : (size_t)c->payload_left;
        if (c->is_kept) keep(c, bytes, here);
        uint64_t left = c->payload_left - here;
        if (c->opcode < 8) scan(c, bytes, here);
        if (c->stage == CLOSED) return;
        c->payload_left = left;
        bytes += here;
        length -= here;
        if (!left) {
            c->in_payload = 0;
            message_ended(c);
        }
    }
}

static void received(struct connection *c, const uint8_t *bytes, size_t length) {
    if (c->stage == HEAD) {
        size_t i = 0;
        keep(c, bytes, length < 16 ? length : 16);
        while (i < length && c->end_of_head < 4) {
            c->end_of_head = bytes[i] == "\r\n\r\n"[c->end_of_head] ? c->end_of_head + 1 : bytes[i] == '\r';
            i++;
        }
        if (c->end_of_head < 4) return;
        if (strncmp(c->text, dialect->transport == WEBSOCKET ? "HTTP/1.1 101" : "HTTP/1.1 200", 12)) {
            c->text[12] = 0;
            die("a connection was answered with", c->text);
        }
        c->text_length = 0;
        c->stage = OPENING;
        bytes += i;
        length -= i;
        if (dialect->transport == WEBSOCKET && dialect->framing == PLAIN) {
            if (dialect->subscribes) subscribe(c);
            else became_live(c);
        }
    }
    if (dialect->transport == WEBSOCKET) {
        read_frames(c, bytes, length);
        return;
    }
    if (c->stage == OPENING) {
        keep(c, bytes, length);
        if (c->text_length) on_opening(c, c->text);
    }
    scan(c, bytes, length);
}

/* Connecting */

static void begin(struct connection *c, unsigned index) {
    int on = 1, small = 4096;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->index = index;
    c->end_of_head = c->head_length = c->in_payload = 0;
    c->digits = 0;
    c->text_length = 0;
    c->expected = 0;
    c->marks = 0;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (index < stalled) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect", strerror(errno));
    c->stage = CONNECTING;
    opening++;
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = index};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static void connected(struct connection *c) {
    char request[1024], session[32];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) die("connect", strerror(error));
    sprintf(session, "s%u-%u", generation, c->index);
    int length = snprintf(request, sizeof request, dialect->request, prefix, session);
    length += snprintf(request + length, sizeof request - (size_t)length, "\r\nHost: 127.0.0.1:%d\r\n%s\r\n", port,
                       dialect->transport == WEBSOCKET
                           ? "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                             "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n"
                           : "Content-Length: 0\r\n");
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = c->index};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    c->stage = HEAD;
    send_all(c, request, (size_t)length);
}

static void open_more(unsigned at_once) {
    while (begun < wanted && opening < at_once) {
        begin(&all[begun], begun);
        begun++;
    }
}

/* Answers to commands */

static int compare(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static void print_percentiles(const char *name, uint32_t *values, size_t count) {
    printf(", \"%s\": [", name);
    qsort(values, count, sizeof *values, compare);
    for (unsigned i = 0; count && i < PERCENTILES; i++)
        printf("%s%u", i ? ", " : "", values[(size_t)((double)(count - 1) * i / (PERCENTILES - 1) + 0.5)]);
    printf("]");
}

/* Records that connection i is to get by the resume under way. */
static unsigned resume_due(unsigned i) {
    return (unsigned)target + resume_back + i % resume_spread;
}

static void answer(int is_late) {
    unsigned missing = 0;
    if (pending == EXPECT || pending == RESUME)
        for (unsigned i = 0; i < wanted; i++) {
            unsigned all_due = pending == EXPECT ? (unsigned)target : resume_due(i);
            if (all[i].stage != STALLED && all[i].marks < all_due) missing += all_due - all[i].marks;
        }
    uint64_t end = (pending == EXPECT || pending == RESUME) && last_mark && !is_late ? last_mark : now_ns();
    printf("{\"late\": %s, \"live\": %u, \"lost\": %u, \"records\": %llu, \"missing\": %u, \"calls\": %llu, \"seconds\": %.6f",
           is_late ? "true" : "false", live, lost, (unsigned long long)total, missing, (unsigned long long)calls_done,
           (double)(end - began) / 1e9);
    print_percentiles("latency", samples, sample_count);
    size_t reached = 0;
    static uint32_t last[CHANGES_MAX];
    for (unsigned i = 0; i < changes; i++)
        if (last_of[i]) last[reached++] = last_of[i];
    print_percentiles("last", last, reached);
    printf("}\n");
    fflush(stdout);
    pending = NOTHING;
    resuming = 0;
}

static void command(char *line) {
    double k = 0, back = 0, spread = 1, seconds = 60;
    char name[16] = "";
    began = now_ns();
    if (sscanf(line, "%15s %lf %lf %lf %lf", name, &k, &back, &spread, &seconds) < 1) return;
    if (!strcmp(name, "open")) {
        unsigned more = (unsigned)k;
        all = realloc(all, more * sizeof *all);
        if (!all) die("no", "memory");
        for (unsigned i = wanted; i < more; i++) memset(&all[i], 0, sizeof *all);
        wanted = more;
        pending = OPEN;
        deadline = began + 60000000000u;
    } else if (!strcmp(name, "stall")) {
        stalled = (unsigned)k;
        answer(0);
    } else if (!strcmp(name, "arm")) {
        reset();
        answer(0);
    } else if (!strcmp(name, "expect")) {
        pending = EXPECT;
        target = (uint64_t)k;
        deadline = began + (uint64_t)(back * 1e9);
    } else if (!strcmp(name, "call")) {
        pending = CALL;
        calling = (int)live;
        deadline = began + (uint64_t)(k * 1e9);
        for (unsigned i = 0; i < wanted; i++)
            if (all[i].stage == LIVE) call(&all[i]);
    } else if (!strcmp(name, "cut")) {
        for (unsigned i = 0; i < wanted; i++) close_connection(&all[i], 1);
        answer(0);
    } else if (!strcmp(name, "resume")) {
        reset();
        pending = RESUME;
        resuming = 1;
        begun = 0;
        generation++;
        target = (uint64_t)k;
        resume_back = (unsigned)back;
        resume_spread = (unsigned)spread;
        deadline = began + (uint64_t)(seconds * 1e9);
        due = 0;
        for (unsigned i = 0; i < wanted; i++) due += resume_due(i);
    } else {
        die("unknown command", name);
    }
}

static int is_done(void) {
    switch (pending) {
    case OPEN: return begun == wanted && !opening;
    case EXPECT: return total >= target * (live - (stalled < live ? stalled : live));
    case RESUME: return begun == wanted && !opening && total >= due;
    case CALL: return !calling;
    default: return 0;
    }
}

/* Milliseconds to sleep at most until something comes; -1 without end. */
static int patience(int is_alone) {
    if (!pending) return -1;
    return is_alone && (pending == EXPECT || pending == CALL) ? 0 : 20;
}

int main(int count, char **arguments) {
    if (count != 5) die("usage:", "load PORT DIALECT PREFIX MARKS_PER_CALL");
    port = atoi(arguments[1]);
    for (size_t i = 0; i < sizeof DIALECTS / sizeof *DIALECTS; i++)
        if (!strcmp(DIALECTS[i].name, arguments[2])) dialect = &DIALECTS[i];
    if (!dialect) die("unknown dialect", arguments[2]);
    prefix = arguments[3];
    marks_per_call = (unsigned)atoi(arguments[4]);
    generation = (unsigned)getpid() * 1000; /* no session is taken for one of an earlier run */
    signal(SIGPIPE, SIG_IGN);
    samples = malloc(SAMPLES_MAX * sizeof *samples);
    last_of = calloc(CHANGES_MAX, sizeof *last_of);
    if (!samples || !last_of) die("no", "memory");
    cpu_set_t cores;
    int is_alone = sysconf(_SC_NPROCESSORS_ONLN) > 1 && !sched_getaffinity(0, sizeof cores, &cores) && CPU_COUNT(&cores) == 1;
    epoll_fd = epoll_create1(0);
    struct epoll_event input = {.events = EPOLLIN, .data.u32 = ~0u};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &input);
    static uint8_t buffer[BUFFER];
    static char line[256];
    size_t line_length = 0;
    for (;;) {
        struct epoll_event events[512];
        if (pending == OPEN || pending == RESUME) open_more(IN_FLIGHT);
        int ready = epoll_wait(epoll_fd, events, 512, patience(is_alone));
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u32 == ~0u) {
                ssize_t length = read(0, line + line_length, sizeof line - 1 - line_length);
                if (length <= 0) return 0;
                line_length += (size_t)length;
                line[line_length] = 0;
                if (line[line_length - 1] == '\n') {
                    line_length = 0;
                    command(line);
                }
                continue;
            }
            struct connection *c = &all[events[i].data.u32];
            if (c->stage == CLOSED) continue;
            if (c->stage == CONNECTING) {
                connected(c);
                continue;
            }
            ssize_t length = recv(c->fd, buffer, sizeof buffer, 0);
            if (length > 0) {
                received(c, buffer, (size_t)length);
            } else if (length == 0 || errno != EAGAIN) {
                lost++;
                close_connection(c, 1);
            }
        }
        if (pending && is_done()) answer(0);
        else if (pending && now_ns() > deadline + (pending == CALL ? 5000000000u : 0)) calling = 0, answer(1);
    }
}
