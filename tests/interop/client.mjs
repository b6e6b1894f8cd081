// MQTT.js against a broker: subscribe, publish with each QoS, get it all back; print what came.
// Everything twice, so that a v5 broker uses the topic aliases it is allowed.
// Arguments: URL, protocol version, and a CA file ("" for none).
import { readFileSync } from 'node:fs'
import mqtt from 'mqtt'

const [url, version, ca] = process.argv.slice(2)
const payloads = ['zero', 'one', 'x'.repeat(70000)]
const got = []

const client = mqtt.connect(url, {
  protocolVersion: Number(version),
  clientId: 'mqttjs',
  reconnectPeriod: 0,
  properties: version === '5' ? { topicAliasMaximum: 5 } : undefined,
  ca: ca ? [readFileSync(ca)] : undefined
})

client.on('error', (error) => {
  console.error(String(error))
  process.exit(1)
})

client.on('message', (topic, payload) => {
  got.push([topic, payload.toString()])
  if (got.length === 2 * payloads.length) {
    console.log(JSON.stringify(got.map(([topic, text]) => [topic, text.length])))
    client.end(false, () => process.exit(0))
  }
})

client.on('connect', async () => {
  const granted = await client.subscribeAsync('js/+', { qos: 2 })
  if (granted[0].qos !== 2) process.exit(2)
  for (const [qos, payload] of [...payloads.entries(), ...payloads.entries()]) {
    await client.publishAsync(`js/${qos}`, payload, { qos })
  }
})
