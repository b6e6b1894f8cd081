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

async function send(path, fields, answerBox) {
  const target = address(path, fields);
  answerBox.textContent = "…";
  answerBox.hidden = false;
  try {
    const answer = await fetch(target);
    const text = await answer.text();
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: as it is */ }
    answerBox.textContent = `GET ${target}\n${answer.status} ${answer.statusText}\n\n${shown.slice(0, 100000)}`;
  } catch (error) { answerBox.textContent = error.message; }
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
