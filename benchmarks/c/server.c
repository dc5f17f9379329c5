/* The reference: an epoll server that accepts WebSockets and does one send(2) of a prebuilt frame for each client.

   server FD: FD is a listening socket. Text that a client sends is echoed. Over plain HTTP it is told what to do:
   GET /publish?count=N&burst=B&interval=SECONDS and GET /quiet, as every server of the benchmarks. */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common.h"

#define MAX_CLIENTS 65536
#define BUFFER 65536

static int epoll_fd, listen_fd, timer_fd;
static int clients[MAX_CLIENTS]; /* descriptors of open WebSockets, dense */
static int places[MAX_CLIENTS];  /* by descriptor: its place in `clients` plus one; 0 while it speaks HTTP */
static int client_count;
static unsigned left, burst, number; /* of the changes that are being published */

/* SHA-1 of a short text, for the answer to Sec-WebSocket-Key. */
static void sha1(const uint8_t *text, size_t length, uint8_t digest[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t block[192] = {0};
    size_t blocks = (length + 9 + 63) / 64;
    if (blocks > 3) return;
    memcpy(block, text, length);
    block[length] = 0x80;
    for (int i = 0; i < 8; i++) block[blocks * 64 - 1 - i] = (uint8_t)((length * 8) >> (8 * i));
    for (size_t b = 0; b < blocks; b++) {
        uint32_t w[80];
        for (int i = 0; i < 16; i++) {
            const uint8_t *p = block + b * 64 + i * 4;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) {
            uint32_t x = w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16];
            w[i] = x << 1 | x >> 31;
        }
        uint32_t a = h[0], c = h[1], d = h[2], e = h[3], f = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t mix, k;
            if (i < 20) mix = (c & d) | (~c & e), k = 0x5A827999;
            else if (i < 40) mix = c ^ d ^ e, k = 0x6ED9EBA1;
            else if (i < 60) mix = (c & d) | (c & e) | (d & e), k = 0x8F1BBCDC;
            else mix = c ^ d ^ e, k = 0xCA62C1D6;
            uint32_t next = (a << 5 | a >> 27) + mix + f + k + w[i];
            f = e, e = d, d = c << 30 | c >> 2, c = a, a = next;
        }
        h[0] += a, h[1] += c, h[2] += d, h[3] += e, h[4] += f;
    }
    for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const uint8_t *bytes, size_t length, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < length; i += 3) {
        size_t rest = length - i;
        uint32_t three = (uint32_t)bytes[i] << 16;
        if (rest > 1) three |= (uint32_t)bytes[i + 1] << 8;
        if (rest > 2) three |= bytes[i + 2];
        *out++ = digits[three >> 18];
        *out++ = digits[three >> 12 & 63];
        *out++ = rest > 1 ? digits[three >> 6 & 63] : '=';
        *out++ = rest > 2 ? digits[three & 63] : '=';
    }
    *out = 0;
}

static void hang_up(int fd) {
    int place = places[fd];
    if (place) { /* the last one takes its place */
        int last = clients[--client_count];
        clients[place - 1] = last;
        places[last] = place;
        places[fd] = 0;
    }
    close(fd);
}

static void publish(void) {
    static uint8_t frame[BUFFER];
    for (unsigned i = 0; i < burst && left; i++, left--) {
        char record[RECORD_SIZE + 1], id[16], text[512];
        snprintf(id, sizeof id, "r%05u", number % RECORDS);
        write_record(record, id, "", number, now_ns());
        size_t length = (size_t)sprintf(text, "{\"event\":\"Item:upsert\",\"data\":%s}", record);
        size_t head = write_head(frame, 1, length, 0);
        memcpy(frame + head, text, length);
        number++;
        for (int c = client_count - 1; c >= 0; c--) {
            int fd = clients[c];
            if (send(fd, frame, head + length, MSG_NOSIGNAL) != (ssize_t)(head + length)) hang_up(fd);
        }
    }
    if (!left) {
        struct itimerspec never = {0};
        timerfd_settime(timer_fd, 0, &never, NULL);
    }
}

static double parameter(const char *query, const char *name) {
    const char *found = strstr(query, name);
    return found ? atof(found + strlen(name)) : 0;
}

static void answer(int fd, const char *request) {
    char response[512];
    const char *key = strcasestr(request, "sec-websocket-key:");
    if (key) {
        char joined[128], accepted[32];
        uint8_t digest[20];
        key += strlen("sec-websocket-key:");
        key += strspn(key, " ");
        snprintf(joined, sizeof joined, "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)strcspn(key, "\r\n ") % 64, key);
        sha1((const uint8_t *)joined, strlen(joined), digest);
        base64(digest, sizeof digest, accepted);
        snprintf(response, sizeof response,
                 "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Accept: %s\r\n\r\n", accepted);
        clients[client_count++] = fd;
        places[fd] = client_count;
    } else {
        if (strncmp(request, "GET /publish?", 13) == 0) {
            left = (unsigned)parameter(request, "count=");
            burst = (unsigned)parameter(request, "burst=");
            number = 0;
            long nanoseconds = (long)(parameter(request, "interval=") * 1e9) + 1;
            struct timespec pause = {nanoseconds / 1000000000, nanoseconds % 1000000000};
            struct itimerspec pace = {pause, pause};
            timerfd_settime(timer_fd, 0, &pace, NULL);
        }
        snprintf(response, sizeof response, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n");
    }
    if (send(fd, response, strlen(response), MSG_NOSIGNAL) < 0) hang_up(fd);
}

/* Echo the text frames in what has come; a close frame ends the connection. Frames come whole: they are small. */
static void echo(int fd, uint8_t *bytes, size_t length) {
    static uint8_t out[BUFFER + 16];
    while (length >= 6) {
        size_t size = bytes[1] & 127, head = 2;
        if (size == 126) size = (size_t)bytes[2] << 8 | bytes[3], head = 4;
        if (size == 127 || length < head + 4 + size) break;
        uint8_t *mask = bytes + head, *text = mask + 4;
        if ((bytes[0] & 15) == 8) {
            hang_up(fd);
            return;
        }
        size_t out_head = write_head(out, bytes[0] & 15, size, 0);
        for (size_t i = 0; i < size; i++) out[out_head + i] = text[i] ^ mask[i & 3];
        if ((bytes[0] & 15) == 1 && send(fd, out, out_head + size, MSG_NOSIGNAL) < 0) {
            hang_up(fd);
            return;
        }
        bytes = text + size;
        length -= head + 4 + size;
    }
}

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

int main(int count, char **arguments) {
    if (count != 2) die("usage:", "server FD");
    listen_fd = atoi(arguments[1]);
    fcntl(listen_fd, F_SETFL, O_NONBLOCK);
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(listen_fd);
    watch(timer_fd);
    static uint8_t buffer[BUFFER];
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listen_fd) {
                int on = 1, accepted;
                while ((accepted = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (accepted >= MAX_CLIENTS) die("too many", "descriptors");
                    setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    watch(accepted);
                }
            } else if (fd == timer_fd) {
                uint64_t times;
                if (read(timer_fd, &times, sizeof times) > 0 && left) publish();
            } else {
                ssize_t length = recv(fd, buffer, sizeof buffer - 1, 0);
                if (length <= 0) {
                    if (length == 0 || errno != EAGAIN) hang_up(fd);
                } else if (places[fd]) {
                    echo(fd, buffer, (size_t)length);
                } else {
                    buffer[length] = 0;
                    answer(fd, (const char *)buffer);
                }
            }
        }
    }
}
