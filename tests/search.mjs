// Search the site as a reader does: node search.mjs SITE, queries as a JSON list on stdin.
// Prints the addresses of what is found, best first, for each query.
import fs from "node:fs"
import vm from "node:vm"

const site = process.argv[2]
const workers = `${site}/assets/javascripts/workers`
const index = JSON.parse(fs.readFileSync(`${site}/search.json`, "utf8"))
let answer
const self = { postMessage: (message) => answer(message) }
const [name] = fs.readdirSync(workers)
vm.runInNewContext(fs.readFileSync(`${workers}/${name}`, "utf8"), { self, Intl })
const ask = (message) =>
  new Promise((resolve) => {
    answer = resolve
    self.onmessage({ data: message })
  })

await ask({ type: 0, data: index })
const results = {}
for (const input of JSON.parse(fs.readFileSync(0, "utf8"))) {
  const found = await ask({ type: 2, data: { input } })
  results[input] = found.data.items.map((item) => index.items[item.id].location)
}
console.log(JSON.stringify(results))
