// From a fresh clone to a built workspace: tools checked, packages installed, native library and TypeScript built. Each
// step is a no-op when nothing changed; everything it says goes to stderr.
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { root, setUp } from './child.mjs'
import { buildNative } from './native.mjs'
import { missingTools } from './tools.mjs'

const quiet = {
  DO_NOT_TRACK: '1',
  TURBO_TELEMETRY_DISABLED: '1',
  PNPM_CONFIG_UPDATE_NOTIFIER: 'false',
  npm_config_update_notifier: 'false',
  // `npm run --silent` must not silence the reason of a failed installation.
  npm_config_loglevel: 'error',
}

/** The pinned pnpm, through npx, which also puts it on PATH for what it runs (turbo looks for it there). */
export function pnpm(...args) {
  const { packageManager } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  return setUp('npx', ['--yes', packageManager, ...args], { env: quiet })
}

/** Folders of the workspace that hold a package. */
export function packageFolders() {
  const folders = ['kernels']
  for (const parent of ['kernels/npm', 'packages', 'apps']) {
    if (!existsSync(join(root, parent))) continue
    for (const name of readdirSync(join(root, parent)).sort()) folders.push(`${parent}/${name}`)
  }
  return folders.filter((folder) => existsSync(join(root, folder, 'package.json')))
}

// The installation is current when it was made for these manifests by this Node.
async function installPackages() {
  const stamp = join(root, 'node_modules', '.nexus-installed')
  const hash = createHash('sha256').update(process.version)
  const manifests = packageFolders().map((folder) => `${folder}/package.json`)
  for (const file of ['package.json', 'pnpm-lock.yaml', 'pnpm-workspace.yaml', ...manifests]) {
    hash.update(`\0${file}\0`).update(readFileSync(join(root, file)))
  }
  const wanted = hash.digest('hex')
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) return
  await pnpm('install', '--frozen-lockfile', '--reporter=append-only')
  writeFileSync(stamp, wanted)
}

/** Sets up what `task` needs; ends the process with one line for each missing tool. */
export async function setUpWorkspace({ native = true, build = true } = {}) {
  const missing = missingTools()
  if (missing.length > 0) {
    for (const line of missing) process.stderr.write(`nexus: ${line}\n`)
    process.exit(1)
  }
  await installPackages()
  if (native) await buildNative()
  if (build) await pnpm('exec', 'turbo', 'run', 'build', '--output-logs=errors-only')
}
