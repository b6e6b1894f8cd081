// The console: asks the API every two seconds and shows what it says. What devices sent is only
// ever set as text, never as markup.

const EVERY_MS = 2000;
const LEDGER_EVERY_MS = 10000;
const RATE_POINTS = 150;      // five minutes
const VALUES_DEVICES = 50;
const CHART_READINGS = 300;
const CHARTS_MAX = 6;
const TOPIC_CHARS = 42;

const byId = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en");
let clockSkewMs = 0;           // node's clock minus the browser's, by its Date header

// ---- small helpers ------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" }, cache: "no-store" });
  const date = Date.parse(answer.headers.get("Date") || "");
  if (!Number.isNaN(date)) clockSkewMs = Math.abs(date - Date.now()) > 3000 ? date - Date.now() : 0;
  const body = await answer.json();
  if (!answer.ok && !("reasons" in body)) throw new Error(body.detail || `${path}: ${answer.status}`);
  return body;
}

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const cell = (content, className = "") => element("td", { className }, content);

function fill(tableId, rows, empty) {
  const body = byId(tableId).tBodies[0];
  const columns = byId(tableId).tHead.rows[0].cells.length;
  if (!rows.length) {
    rows = [element("tr", {}, element("td", { className: "none", colSpan: columns, textContent: empty }))];
  }
  body.replaceChildren(...rows);
}

function figure(id, text, unit = "", state = "") {
  const shown = byId(id);
  shown.className = `figure ${state}`;
  shown.replaceChildren(text);
  if (unit) shown.append(element("small", { textContent: unit }));
}

const note = (id, text) => { byId(id).textContent = text; };

function short(count) {
  if (count < 10000) return numbers.format(count);
  for (const [size, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= size) return `${(count / size).toFixed(count >= 100 * size ? 0 : 1)} ${name}`;
  }
  return String(count);
}

function bytes(count) {
  for (const [size, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (count >= size) return `${(count / size).toFixed(1)} ${name}`;
  }
  return `${count} B`;
}

function span(seconds) {
  if (seconds < 0) return "in the future";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const ageSeconds = (timeUs) => Math.max(-1, (Date.now() + clockSkewMs) / 1000 - timeUs / 1e6 + 0.05);
const age = (timeUs) => { const seconds = ageSeconds(timeUs); return seconds > -1 && seconds < 1 ? "now" : span(seconds); };
const ago = (timeUs) => (timeUs === null ? "never" : ageSeconds(timeUs) < 1 ? "now" : `${age(timeUs)} ago`);

function moment(timeUs) {
  const date = new Date(timeUs / 1000);
  if (Number.isNaN(date.getTime())) return String(timeUs);
  const today = new Date().toDateString() === date.toDateString();
  const time = date.toLocaleTimeString([], { hour12: false });
  return today ? time : `${date.toLocaleDateString("sv")} ${time}`;
}

function shownValue(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? numbers.format(value) : String(+value.toPrecision(6));
  return typeof value === "string" ? value : JSON.stringify(value);
}

const payloadText = (reading) =>
  "payload_base64" in reading ? `${numbers.format(reading.payload_bytes)} bytes, binary` : shownValue(reading.payload);

// ---- lines --------------------------------------------------------------------------------------

function drawLine(svg, points, zero) {
  const values = points.map((point) => point[1]);
  const low = zero ? 0 : Math.min(...values);
  const high = Math.max(...values, low + 1e-9);
  const first = points[0][0];
  const width = points[points.length - 1][0] - first || 1;
  const place = ([at, value]) => `${(((at - first) / width) * 1000).toFixed(1)},${(98 - ((value - low) / (high - low)) * 94).toFixed(1)}`;
  const path = points.map(place).join(" ");
  const make = (name, given) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    made.setAttribute("points", given);
    return made;
  };
  svg.setAttribute("viewBox", "0 0 1000 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(make("polygon", `0,100 ${path} 1000,100`), make("polyline", path));
}

// ---- the node -----------------------------------------------------------------------------------

const rates = [];
let before = null;

function showStatus(status, readiness) {
  const ready = byId("ready");
  ready.textContent = readiness.ok ? "ready" : "not ready";
  ready.className = `pill ${readiness.ok ? "good" : "bad"}`;
  ready.title = readiness.reasons.join("\n");
  document.title = status.node ? `${status.node}: Tidegate` : "Tidegate";
  note("node", `${status.node ? `${status.node}, ` : ""}${location.host}, version ${status.version}, up ${span(ageSeconds(status.started_us))}`);
  if (!readiness.ok) trouble(readiness.reasons.join("; "));

  const now = performance.now();
  if (before && status.started_us === before.status.started_us) {
    const seconds = (now - before.at) / 1000;
    const rate = (status.readings_taken - before.status.readings_taken) / seconds;
    const stored = (status.readings_stored - before.status.readings_stored) / seconds;
    rates.push([now, rate]);
    if (rates.length > RATE_POINTS) rates.shift();
    figure("rate", short(Math.round(rate)), "a second");
    figure("stored", short(Math.round(stored)), "a second");
    if (rates.length > 1) drawLine(byId("rate-line"), rates, true);
  }
  before = { at: now, status };
  note("rate-note", `${short(status.readings_taken)} since the start`);
  const saved = status.uplink_bytes ? status.payload_bytes / status.uplink_bytes : 0;
  note("stored-note", `${bytes(status.storage_bytes)} on disk${saved > 1.05 ? `, ${saved.toFixed(1)}× packed` : ""}`);
}

function showGateways(gateways) {
  const up = gateways.filter((one) => one.connected).length;
  figure("links", String(up), `of ${gateways.length}`, up < gateways.length ? "warn" : "");
  const away = gateways.length - up;
  note("links-note", away ? `${away} out of reach` : gateways.length ? "all connected" : "none was here yet");
  const backlog = gateways.reduce((sum, one) => sum + one.backlog_readings, 0);
  figure("backlog", short(backlog));
  const lags = gateways.map((one) => one.lag_s).filter((lag) => lag !== null);
  note("backlog-note", lags.length ? `readings; lag up to ${span(Math.max(...lags))}` : "readings not here yet");
  fill("gateways", gateways.map((one) => element("tr", {},
    element("td", {}, element("span", { className: `dot ${one.connected ? "up" : "down"}` }), one.gateway),
    cell(one.connected ? `connected ${span(ageSeconds(one.connected_us))} ${one.node ? `to ${one.node}` : `from ${one.peer}`}` : "out of reach"),
    cell(numbers.format(one.backlog_readings), `number ${one.backlog_readings > 10000 ? "loud" : ""}`),
    cell(one.lag_s === null ? "–" : span(one.lag_s), `number ${one.lag_s > 60 ? "loud" : ""}`),
    cell(numbers.format(one.readings), "number"),
    cell(ago(one.last_batch_us)),
    cell(ago(one.last_event_us)))), "No gateway has connected yet.");
}

function showLedger({ balanced, ledger }) {
  const missing = ledger.reduce((sum, one) => sum + one.missing, 0);
  const givenUp = ledger.reduce((sum, one) => sum + one.given_up + one.dead_letters, 0);
  const verdict = balanced ? "balances" : missing ? `${short(missing)} missing` : "does not balance";
  if (ledger.length) figure("balance", verdict, "", balanced ? "good" : "bad");
  note("balance-note", !ledger.length ? "nothing assigned yet" : givenUp ? `${short(givenUp)} given up, recorded` : "nothing given up");
  fill("ledger", ledger.map((one) => {
    const waiting = one.waiting_edge + one.waiting_stream;
    const lost = one.given_up + one.dead_letters;
    const bar = element("div", { className: "bar" });
    for (const [name, count] of [["stored", one.stored], ["lost", lost], ["waiting", waiting], ["missing", one.missing]]) {
      const part = element("i", { className: name, title: `${name === "lost" ? "given up" : name}: ${numbers.format(count)}` });
      part.style.width = `${(100 * count) / Math.max(one.assigned, 1)}%`;
      if (count) part.style.minWidth = "3px";
      bar.append(part);
    }
    const reasons = [...new Set(one.losses.map((loss) => loss.reason))].join(", ");
    const verdict = element("span", { className: `chip ${one.balanced ? "good" : "bad"}`, textContent: one.balanced ? "balances" : one.missing ? `${numbers.format(one.missing)} missing` : "does not balance" });
    const gaps = one.gaps.map(([first, last]) => (first === last ? first : `${first}–${last}`)).join(", ");
    return element("tr", {},
      element("td", {}, one.gateway, element("span", { className: "sub mono", textContent: one.epoch })),
      cell(bar),
      cell(numbers.format(one.assigned), "number"), cell(numbers.format(one.stored), "number"),
      element("td", { className: "number" }, numbers.format(lost), reasons ? element("span", { className: "sub", textContent: reasons }) : null),
      cell(numbers.format(waiting), "number"),
      element("td", {}, verdict, gaps ? element("span", { className: "sub", textContent: `seq ${gaps}` }) : null));
  }), "No reading was assigned yet.");
}

// ---- alerts -------------------------------------------------------------------------------------

const SEVERITY = { critical: "bad", warning: "warn", info: "" };

function named(one) {
  return element("td", {},
    element("span", { className: `chip ${SEVERITY[one.severity] || ""}`, textContent: one.severity }),
    ` ${one.rule}`,
    one.summary ? element("span", { className: "sub", textContent: one.summary }) : null);
}

function showAlerts(alerts) {
  const firing = alerts.filter((one) => one.state === "firing");
  const open = firing.filter((one) => !one.acked_by).length;
  figure("firing", String(firing.length), "firing", open ? "bad" : firing.length ? "warn" : "good");
  const pending = alerts.length - firing.length;
  note("firing-note", firing.length ? `${open} not acknowledged` : pending ? `${pending} pending` : "all quiet");
  fill("alerts", alerts.map((one) => {
    const state = [];
    state.push(element("span", { className: `chip ${one.state === "firing" ? "bad" : "warn"}`, textContent: one.state }));
    if (one.flapping) state.push(" ", element("span", { className: "chip warn", textContent: "flapping" }));
    if (one.clear_us !== null) state.push(` well for ${span(ageSeconds(one.clear_us))}`);
    const who = one.acked_by ? `${one.acked_by}${one.note ? `: ${one.note}` : ""}` : "";
    let action = null;
    if (one.state === "firing" && !one.acked_by) {
      action = element("button", { type: "button", textContent: "Acknowledge", onclick: () => openAck(one) });
    } else if (who) action = element("span", { className: "quiet", textContent: who });
    return element("tr", {}, named(one),
      element("td", {}, one.device, one.topic ? element("span", { className: "sub", textContent: one.topic }) : null),
      cell(shownValue(one.value), "number"),
      element("td", { title: moment(one.fired_us || one.since_us) }, ago(one.fired_us || one.since_us)),
      element("td", {}, ...state), element("td", {}, action));
  }), "No alert is pending or firing.");
}

function showEvents(events) {
  fill("events", events.map((one) => {
    const state = one.state === "firing" ? "bad" : one.state === "resolved" ? "good" : "";
    return element("tr", {}, cell(moment(one.at_us)), named(one), cell(one.device),
      cell(shownValue(one.value), "number"),
      element("td", {}, element("span", { className: `chip ${one.historical ? "" : state}`, textContent: one.state }),
        one.historical ? " from late readings, not sent out" : one.reason ? ` ${one.reason}` : ""));
  }), "Nothing happened yet.");
}

let acking = null;

function openAck(alert) {
  acking = alert;
  note("ack-what", `${alert.rule} on ${alert.device}`);
  byId("ack-by").value = localStorage.getItem("tidegate-name") || "";
  byId("ack-note").value = "";
  byId("ack-trouble").hidden = true;
  byId("ack").showModal();
}

async function sendAck() {
  const by = byId("ack-by").value.trim();
  const problem = byId("ack-trouble");
  try {
    if (!by) throw new Error("say who you are");
    const answer = await fetch(`/api/v1/alerts/${encodeURIComponent(acking.alert_id)}/ack`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ by, note: byId("ack-note").value }),
    });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    localStorage.setItem("tidegate-name", by);
    byId("ack").close();
    refresh();
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
  }
}

// ---- latest values ------------------------------------------------------------------------------

let opened = "";      // "device topic" of the row that shows its past
let openedRow = null;

// what tells topics apart is mostly at their end
const tail = (topic) => (topic.length > TOPIC_CHARS ? `…${topic.slice(1 - TOPIC_CHARS)}` : topic);

function pattern() {
  const text = byId("search").value.trim();
  if (!text) return "*";
  return /[*?[]/.test(text) ? text : `*${text}*`;
}

function showValues({ devices, next }) {
  const rows = [];
  let found = false;
  for (const device of devices) {
    for (const value of device.values) {
      const key = `${device.device} ${value.topic}`;
      const text = payloadText(value);
      const row = element("tr", { className: "open-able", tabIndex: 0, title: "Show its last readings" },
        element("td", { textContent: device.device, title: device.device }),
        element("td", { className: "mono", textContent: tail(value.topic), title: value.topic }),
        element("td", { className: "mono", textContent: text.slice(0, 300) }),
        cell(value.gateway), cell(age(value.time_us), "number"));
      row.onclick = () => open(key, device.device, value.topic);
      row.onkeydown = (event) => { if (event.key === "Enter") row.onclick(); };
      rows.push(row);
      if (key === opened) { found = true; rows.push(openedRow); }
    }
  }
  if (opened && !found) opened = "";
  fill("values", rows, byId("search").value ? "No device is called that." : "No device has sent anything yet.");
  note("values-more", next ? `The first ${devices.length} devices; search for others.` : "");
}

async function open(key, device, topic) {
  const same = key === opened;
  opened = same ? "" : key;
  const holder = element("td", { colSpan: 5, textContent: "…" });
  openedRow = element("tr", { className: "detail" }, holder);
  refreshValues();
  if (same) return;
  try {
    const literal = !/[+#]/.test(topic) ? `&topic=${encodeURIComponent(topic)}` : "";
    const answer = await ask(`/api/v1/devices/${encodeURIComponent(device)}/readings?limit=${CHART_READINGS}${literal}`);
    holder.replaceChildren(past(answer.readings.reverse()));
  } catch (error) { holder.textContent = error.message; }
}

function leaves(value, path, found) {
  if (typeof value === "number") found.set(path, value);
  else if (typeof value === "boolean") found.set(path, Number(value));
  else if (value && typeof value === "object") {
    for (const [key, one] of Object.entries(value)) {
      leaves(one, Array.isArray(value) ? `${path}[${key}]` : path ? `${path}.${key}` : key, found);
    }
  }
}

function past(readings) {
  if (!readings.length) return element("p", { className: "quiet", textContent: "Nothing is stored yet." });
  const lines = new Map();
  for (const reading of readings) {
    const found = new Map();
    const given = reading.payload;
    leaves(typeof given === "string" && given.trim() && !Number.isNaN(Number(given)) ? Number(given) : given, "", found);
    for (const [name, value] of found) {
      if (!lines.has(name)) lines.set(name, []);
      lines.get(name).push([reading.time_us, value]);
    }
  }
  const drawable = [...lines].filter(([, points]) => points.length > 1);
  const changing = drawable.filter(([, points]) => points.some((point) => point[1] !== points[0][1]));
  const chosen = (changing.length ? changing : drawable).slice(0, CHARTS_MAX);
  const box = element("div", { className: "charts" });
  for (const [name, points] of chosen) {
    const values = points.map((point) => point[1]);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "line");
    drawLine(svg, points, false);
    box.append(element("div", { className: "chart" },
      element("p", {}, element("b", { textContent: name || "value" }), element("span", { textContent: shownValue(values[values.length - 1]) })),
      svg,
      element("p", { className: "quiet" },
        element("span", { textContent: `${shownValue(Math.min(...values))} to ${shownValue(Math.max(...values))}` }),
        element("span", { textContent: `${moment(points[0][0])} – ${moment(points[points.length - 1][0])}` }))));
  }
  if (chosen.length) return box;
  const newest = readings[readings.length - 1];
  return element("pre", { className: "mono", textContent: newest.payload_base64 || JSON.stringify(newest.payload, null, 2) });
}

// ---- the loop -----------------------------------------------------------------------------------

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

const refreshValues = async () =>
  showValues(await ask(`/api/v1/devices?values=true&limit=${VALUES_DEVICES}&match=${encodeURIComponent(pattern())}`));

let ledgerAt = -Infinity;
let answeredAt = Date.now();
let running = false;

async function refresh() {
  if (running) return;
  running = true;
  try {
    const [readiness, status, gateways, alerts] = await Promise.all([
      ask("/readyz"), ask("/status"), ask("/api/v1/gateways"), ask("/api/v1/alerts?limit=200"), refreshValues()]);
    trouble("");
    showStatus(status, readiness);
    showGateways(gateways.gateways);
    showAlerts(alerts.alerts);
    if (byId("history").open) showEvents((await ask("/api/v1/alerts?view=history&limit=50")).events);
    if (performance.now() - ledgerAt > LEDGER_EVERY_MS) {
      showLedger(await ask("/api/v1/ledger"));
      ledgerAt = performance.now();
    }
    answeredAt = Date.now();
    note("updated", `As of ${new Date().toLocaleTimeString([], { hour12: false })}.`);
  } catch (error) {
    const ready = byId("ready");
    ready.textContent = "no answer";
    ready.className = "pill bad";
    trouble(`No answer for ${span((Date.now() - answeredAt) / 1000)}: ${error.message}. What is shown is from before.`);
  } finally { running = false; }
}

byId("ack-send").onclick = sendAck;
byId("ack-cancel").onclick = () => byId("ack").close();
byId("ack-note").onkeydown = (event) => { if (event.key === "Enter") sendAck(); };
byId("search").oninput = () => refreshValues().catch((error) => trouble(error.message));
byId("history").ontoggle = refresh;
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
setInterval(() => { if (!document.hidden) refresh(); }, EVERY_MS);
refresh();
