// Packs every public package of the built workspace as it would be published, and checks what was packed:
//   node scripts/pack.mjs [FOLDER]      default: .pack
// publint looks at the manifest and its files, attw at what TypeScript finds through `import` and through `require`.
import { execFile } from 'node:child_process'
import { mkdirSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { root } from './child.mjs'
import { packageFolders } from './setup.mjs'

const execute = promisify(execFile)

/** @typedef {{ name: string, folder: string, manifest: Record<string, any>, tarball: string }} Packed */

/**
 * @param {string} destination an existing or new folder for the tarballs
 * @returns {Promise<Packed[]>}
 */
export async function packAll(destination) {
  rmSync(destination, { recursive: true, force: true })
  mkdirSync(destination, { recursive: true })
  const { packageManager } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  /** @type {Packed[]} */
  const packed = []
  for (const folder of packageFolders()) {
    const manifest = JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8'))
    if (manifest.private) continue
    const { stdout } = await execute(
      'npx',
      ['--yes', packageManager, 'pack', '--json', '--pack-destination', destination],
      {
        cwd: join(root, folder),
        env: { ...process.env, npm_config_loglevel: 'error', PNPM_CONFIG_UPDATE_NOTIFIER: 'false' },
      },
    )
    // Scripts such as prepack may print first.
    const report = JSON.parse(stdout.slice(stdout.search(/^[[{]/m)))
    const { filename } = Array.isArray(report) ? report[0] : report
    packed.push({
      name: manifest.name,
      folder,
      manifest,
      tarball: isAbsolute(filename) ? filename : join(destination, filename),
    })
  }
  return packed
}

async function outcome(command, args) {
  try {
    await execute(join(root, 'node_modules', '.bin', command), args, { cwd: root })
    return null
  } catch (error) {
    return `${command}: ${error.stdout}${error.stderr}`.trim()
  }
}

/**
 * What publint and attw say against a packed package; an empty list when it is clean.
 * @param {Packed} packed
 * @returns {Promise<string[]>}
 */
export async function problemsOf({ tarball, manifest }) {
  const checks = [outcome('publint', [tarball, '--strict'])]
  // Only a package with an entry point has types to look at: not a command, not a platform's binary.
  // Resolution by Node 10's rules knows no `exports`; every Node that we support does.
  if (manifest.types) checks.push(outcome('attw', [tarball, '--profile', 'node16', '--no-emoji', '--no-color']))
  return (await Promise.all(checks)).filter((problem) => problem !== null)
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const packed = await packAll(process.argv[2] ?? join(root, '.pack'))
  for (const each of packed) {
    const problems = await problemsOf(each)
    console.log(`${problems.length === 0 ? 'ok  ' : 'FAIL'} ${each.name} (${each.tarball})`)
    for (const problem of problems) console.log(problem)
    if (problems.length > 0) process.exitCode = 1
  }
}
