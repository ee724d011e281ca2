// npm run demo | npm test | npm run build …: each sets up all it needs, on a fresh clone, with nothing but Node, npm,
// CMake and a C++ compiler on the machine. See setup.mjs for the steps, tools.mjs for what is checked.
import { join } from 'node:path'
import { runApplication } from './app.mjs'
import { become, CommandFailed, root, stop } from './child.mjs'
import { cudaOption } from './native.mjs'
import { pnpm, setUpWorkspace } from './setup.mjs'

const node = (...args) => become(process.execPath, args)
const bin = (name, ...args) => become(join(root, 'node_modules', '.bin', name), args)

const tasks = {
  build: async () => {},
  demo: (args) => runApplication('demo', args),
  test: (args) => node(join(root, 'scripts/test.mjs'), ...args),
  bench: (args) => runApplication('bench', args),
  docs: (args) => bin('typedoc', ...args),
  bundle: (args) => become('bash', [join(root, 'scripts/bundle.sh'), ...args]),
  typecheck: async () => {
    await pnpm('exec', 'turbo', 'run', 'typecheck', '--output-logs=errors-only')
    await bin('tsc', '-p', 'tests')
  },
}

const [name = 'demo', ...args] = process.argv.slice(2)
const task = Object.hasOwn(tasks, name)
  ? tasks[name]
  : stop(`unknown task '${name}' (${Object.keys(tasks).join(', ')})`)
cudaOption()
try {
  await setUpWorkspace({ native: name !== 'docs' && name !== 'typecheck' })
  await task(args)
} catch (error) {
  if (!(error instanceof CommandFailed)) throw error
  if (error.signal) process.kill(process.pid, error.signal)
  stop(error.message, error.code)
}
