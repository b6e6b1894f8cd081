// The API's reference, made from /openapi.json, with a form to try each GET.

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function typeOf(schema) {
  const kinds = (schema.anyOf || [schema]).map((one) => (one.enum ? one.enum.join(" | ") : one.type));
  return kinds.filter((kind) => kind && kind !== "null").join(" or ");
}

function field(parameter) {
  const { name, schema, description = "", required } = parameter;
  const input = element("input", { name, placeholder: schema.default ?? "", autocomplete: "off", spellcheck: false });
  const text = [typeOf(schema), required ? "required" : "", description].filter(Boolean).join("; ");
  return { parameter, input, row: element("label", {}, element("b", { className: "mono", textContent: name }), input, element("span", { className: "quiet", textContent: text })) };
}

function address(path, fields) {
  const query = new URLSearchParams();
  for (const { parameter, input } of fields) {
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (input.value !== "") query.set(parameter.name, input.value);
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

const SHOWN_CHARS = 100000;
const asked = new Map();       // by the box of its answer: what ends a request that is under way

async function send(path, fields, answerBox) {
  const target = address(path, fields);
  asked.get(answerBox)?.abort();
  const mine = new AbortController();
  asked.set(answerBox, mine);
  answerBox.textContent = "…";
  answerBox.hidden = false;
  try {
    const answer = await fetch(target, { signal: mine.signal });
    const head = `GET ${target}\n${answer.status} ${answer.statusText}\n\n`;
    if ((answer.headers.get("content-type") || "").startsWith("text/event-stream")) {
      await showEvents(answer, head, answerBox, mine);
      return;
    }
    const text = await answer.text();
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: as it is */ }
    answerBox.textContent = head + shown.slice(0, SHOWN_CHARS);
  } catch (error) { if (error.name !== "AbortError") answerBox.textContent = error.message; }
}

// Events have no end: they are shown as they come, until there are many, or Send is pressed again.
async function showEvents(answer, head, answerBox, mine) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  answerBox.textContent = head;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    answerBox.textContent += value;
    if (answerBox.textContent.length > SHOWN_CHARS) mine.abort();
  }
}

function endpoint(path, method, operation) {
  const fields = (operation.parameters || []).map(field);
  const box = element("details", { className: "endpoint" },
    element("summary", {},
      element("span", { className: `chip ${method === "get" ? "good" : "warn"}`, textContent: method.toUpperCase() }),
      element("b", { className: "mono", textContent: path }),
      element("span", { className: "quiet", textContent: operation.description || "" })),
    ...fields.map((one) => one.row));
  if (method === "get") {
    const answerBox = element("pre", { className: "mono answer", hidden: true });
    const button = element("button", { type: "button", textContent: "Send", onclick: () => send(path, fields, answerBox) });
    box.append(button, answerBox);
  } else {
    const body = operation.requestBody?.content?.["application/json"]?.schema?.$ref?.split("/").pop();
    box.append(element("p", { className: "quiet", textContent: body ? `Body: ${body} as application/json; see openapi.json.` : "" }));
  }
  return box;
}

const spec = await (await fetch("/openapi.json")).json();
const groups = new Map();
for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const tag = (operation.tags || ["other"])[0];
    if (!groups.has(tag)) groups.set(tag, []);
    groups.get(tag).push(endpoint(path, method, operation));
  }
}
document.getElementById("paths").replaceChildren(
  element("p", { className: "quiet", textContent: spec.info.description }),
  ...[...groups].map(([tag, endpoints]) => element("section", {}, element("h2", { textContent: tag[0].toUpperCase() + tag.slice(1) }), ...endpoints)));
