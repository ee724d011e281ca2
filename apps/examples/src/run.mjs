/** Runs an example with any Node that Nexus supports: `node apps/examples/src/run.mjs energy-first`. TypeScript is bundled first. */
import { rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { build } from 'tsup'

const folder = fileURLToPath(new URL('..', import.meta.url))
const outDir = `${folder}dist`
// Named by the process, since several may run at once.
const name = `main-${process.pid}`
const entry = { [name]: `${folder}src/main.ts` }
const outExtension = () => ({ js: '.mjs' })
const options = { format: ['esm'], target: 'node20', silent: true, config: false, external: [/^@nexus\//] }
await build({ ...options, entry, outDir, outExtension })
try {
  const { main } = await import(`${outDir}/${name}.mjs`)
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
  process.exitCode = 1
} finally {
  rmSync(`${outDir}/${name}.mjs`, { force: true })
}
