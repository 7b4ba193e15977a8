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

// Numbers that stand still would look like those of a service that is busy.
const lost = document.createElement("p");
lost.className = "lost";
lost.setAttribute("role", "status");
lost.textContent = "No news from the stand-in: the calls are shown as they were.";
let doubt = null;

function hear() {
  clearTimeout(doubt);
  doubt = null;
  lost.remove();
}

function miss() {
  // It asks again by itself where a stream has only come to its end.
  doubt ??= setTimeout(() => document.querySelector("h1").after(lost), 5000);
}

// A browser keeps few connections to one server: a page that nobody sees has none.
function listen() {
  if (document.hidden || gauges.size === 0) {
    source?.close();
    source = null;
  } else if (source === null) {
    const codes = [...gauges.keys()].map((code) => `code=${code}`);
    source = new EventSource(`/events?${codes.join("&")}`);
    source.onmessage = show;
    source.onopen = hear;
    source.onerror = miss;
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
