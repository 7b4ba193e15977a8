// Live gauges, and forms that are sent once. The pages work without it.
"use strict";

const gauges = new Map();
for (const place of document.querySelectorAll("[data-gauge]")) {
  const code = place.dataset.gauge;
  gauges.set(code, [...(gauges.get(code) ?? []), place]);
}

function show(event) {
  for (const [code, live] of Object.entries(JSON.parse(event.data))) {
    for (const place of gauges.get(code) ?? []) {
      for (const meter of place.querySelectorAll("meter")) {
        meter.max = live.max;
        meter.value = live.value;
      }
      for (const text of place.querySelectorAll("[data-live]")) {
        text.textContent = live[text.dataset.live];
      }
    }
  }
}

let source = null;

// A browser keeps few connections to one server: a page that nobody sees has none.
function listen() {
  if (document.hidden || gauges.size === 0) {
    source?.close();
    source = null;
  } else if (source === null) {
    const codes = [...gauges.keys()].map((code) => `code=${code}`);
    source = new EventSource(`/events?${codes.join("&")}`);
    source.onmessage = show;
  }
}

document.addEventListener("visibilitychange", listen);
addEventListener("pagehide", () => {
  source?.close();
  source = null;
});
addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button")) {
    button.disabled = false;
  }
  listen();
});

document.addEventListener("submit", (event) => {
  // Once what is sent has been gathered.
  setTimeout(() => {
    event.submitter?.setAttribute("disabled", "");
  });
});
