// Two conveniences; every page works without them.
"use strict";

// A waiting event: ask for its state, ever less often, and load the page once when it changed.
const waiting = document.querySelector("[data-poll]");
if (waiting) {
  let pause = 1000;
  const ask = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(waiting.dataset.poll, { headers: { Accept: "application/json" } });
        if (answer.redirected || answer.status === 404) return;
        if (answer.ok && (await answer.json()).state !== waiting.dataset.state) {
          location.reload();
          return;
        }
      } catch {
        // The server is restarting or the network is gone: the next turn tries again.
      }
    }
    pause = Math.min(pause * 1.3, 15000);
    setTimeout(ask, pause);
  };
  setTimeout(ask, pause);
}

// The chart: what the tooltip of the column under the pointer says, shown at once below.
const chart = document.querySelector("[data-chart]");
const readout = document.querySelector("[data-readout]");
if (chart && readout) {
  const usual = readout.textContent;
  chart.addEventListener("pointerover", (event) => {
    const title = event.target.querySelector?.("title");
    readout.textContent = title ? title.textContent : usual;
  });
  chart.addEventListener("pointerleave", () => (readout.textContent = usual));
}
