/** A clock, luck, a network and a server's end of sockets, all in the test's hands. No test waits for real time. */
import { Connection, type ConnectionOptions } from "../src/connection.js";
import type { Host } from "../src/host.js";
import type { OpenSocket, SocketHandlers } from "../src/socket.js";
/** Lets all promises and microtasks that are due run. */
export declare const settle: () => Promise<void>;
export declare class VirtualHost implements Host {
    #private;
    time: number;
    luck: number;
    readonly reported: unknown[];
    now(): number;
    setTimeout(callback: () => void, milliseconds: number): number;
    clearTimeout(timer: unknown): void;
    random(): number;
    onNetwork(callback: (online: boolean) => void): () => void;
    report(error: unknown): void;
    get timers(): number;
    get networkListeners(): number;
    network(online: boolean): void;
    /** Runs every timer that is due within the next milliseconds, in order. */
    advance(milliseconds: number): Promise<void>;
}
export type Sent = Record<string, unknown> & {
    id: number;
    event: string;
    data?: any;
};
/** One socket as the server sees it. */
export declare class FakeSocket {
    #private;
    readonly sent: Sent[];
    readonly handlers: SocketHandlers;
    closedByPage: boolean;
    /** Set to make `send` fail. */
    broken: boolean;
    constructor(handlers: SocketHandlers);
    /** Everything that has come since the last `take`. */
    take(): Sent[];
    /** The one message with this event that has come since the last `take`. */
    takeOne(event: string): Sent;
    /** One frame: all messages in one task. */
    frame(...messages: object[]): Promise<void>;
    reply(to: Sent, data: unknown): Promise<void>;
    refuse(to: Sent, code: string, details?: unknown): Promise<void>;
    cut(code?: number, reason?: string): Promise<void>;
}
export declare class FakeServer {
    readonly host: VirtualHost;
    readonly sockets: FakeSocket[];
    readonly urls: string[];
    readonly open: OpenSocket;
    connection(options?: ConnectionOptions): Connection;
    get socket(): FakeSocket;
    /** Opens the newest socket and answers its greeting. */
    accept(heartbeat?: number): Promise<FakeSocket>;
}
/** A connection that stands. */
export declare function connected(options?: ConnectionOptions): Promise<{
    server: FakeServer;
    connection: Connection;
    socket: FakeSocket;
    host: VirtualHost;
}>;
