/** The switch that logs every message, and where the log goes. Knows nothing of what it logs. */

export const debug = {
  enabled: false,

  log(direction: "→" | "←" | "·", ...details: unknown[]): void {
    if (debug.enabled) console.log("backsync", direction, ...details);
  },
};
