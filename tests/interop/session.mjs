// MQTT.js with a session that lasts: subscribe, or wait for what was missed; print it.
// Arguments: port, client id, filter ("" for none), how many messages to wait for.
import mqtt from 'mqtt'

const [port, clientId, filter, count] = process.argv.slice(2)
const got = []
let present = false

const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, {
  protocolVersion: 5,
  clientId,
  clean: false,
  properties: { sessionExpiryInterval: 3600 },
  reconnectPeriod: 0
})

const finish = () => {
  if (got.length < Number(count)) return
  console.log(JSON.stringify({ present, got }))
  client.end(false, () => process.exit(0))
}

client.on('error', (error) => {
  console.error(String(error))
  process.exit(1)
})

client.on('message', (topic, payload) => {
  got.push(payload.toString())
  finish()
})

client.on('connect', async (connack) => {
  present = connack.sessionPresent
  if (filter) await client.subscribeAsync(filter, { qos: 2 })
  finish()
})
