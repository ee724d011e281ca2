/** Prints the schedulers into docs/schedulers.md as they are; the tests hold the two together. */
import { readFileSync, writeFileSync } from 'node:fs'

const path = new URL('../../../docs/schedulers.md', import.meta.url)
let text = readFileSync(path, 'utf8')
for (const name of ['energy-first', 'latency-bounded']) {
  const source = readFileSync(new URL(`${name}.ts`, import.meta.url), 'utf8')
  const block = new RegExp(`(<!-- ${name} -->\\s*\`\`\`ts\\n)[\\s\\S]*?(\`\`\`)`)
  text = text.replace(block, (_, open, close) => open + source + close)
}
writeFileSync(path, text)
