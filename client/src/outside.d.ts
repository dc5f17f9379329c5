/** Types of what we take from others and they do not describe: only the parts that we touch. */

interface SockJSSocket {
  readonly transport: string;
  onopen: (() => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onheartbeat: (() => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

declare module "sockjs-client" {
  interface SockJSOptions {
    transports?: string[];
    timeout?: number;
  }
  const SockJS: new (url: string, protocols: undefined, options: SockJSOptions) => SockJSSocket;
  export default SockJS;
}
