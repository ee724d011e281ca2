// The command of an application of the built workspace, by the `bin` of its package: node scripts/app.mjs demo [ARGS].
// dev.mjs (after set-up) and the bundle's `run` both go through here.
import { existsSync, readFileSync, realpathSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { become, root, stop } from './child.mjs'

/** Runs `apps/<name>` with these arguments and ends as it ends. */
export async function runApplication(name, args) {
  const manifest = join(root, 'apps', name, 'package.json')
  if (!existsSync(manifest)) stop(`apps/${name} is not in this checkout`)
  const { bin } = JSON.parse(readFileSync(manifest, 'utf8'))
  const file = typeof bin === 'string' ? bin : Object.values(bin ?? {})[0]
  if (!file) stop(`apps/${name}/package.json names no command (bin)`)
  await become(process.execPath, [join(root, 'apps', name, file), ...args], { cwd: process.cwd() })
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [name = '', ...args] = process.argv.slice(2)
  await runApplication(name, args)
}
