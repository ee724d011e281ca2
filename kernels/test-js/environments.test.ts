// Environments come and go: workers that load the addon, are terminated in the middle of work, processes that end with promises
// pending. Each case is a process of its own, so that a crash is seen as its exit status.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { loadAddon } from '../lib/binding-entry.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const addon = loadAddon().path

function run(script: string): Promise<{ status: number | null; signal: string | null; out: string; err: string }> {
  return new Promise((resolve, reject) => {
    // Node 20 fails an assertion of its own (NodePlatform::ForIsolate) when V8's compiler thread allocates for a worker that is being
    // terminated, about once in a thousand times: no compiler thread here.
    const flags = ['--expose-gc', '--no-concurrent-recompilation', '--input-type=module']
    const child = spawn(process.execPath, [...flags, '--eval', script], {
      cwd: root,
      env: { ...process.env, NEXUS_NATIVE_PATH: addon },
    })
    let [out, err] = ['', '']
    child.stdout.on('data', (text) => (out += text))
    child.stderr.on('data', (text) => (err += text))
    const timer = setTimeout(() => child.kill('SIGKILL'), 25_000)
    child.on('error', reject)
    child.on('close', (status, signal) => {
      clearTimeout(timer)
      resolve({ status, signal, out: out.trim(), err: err.trim() })
    })
  })
}
const ok = (out: string) => ({ status: 0, signal: null, out, err: '' })

const worker = (body: string): string =>
  `new Worker(\`const { parentPort } = require('node:worker_threads'); const { Tensor, Stream, memoryStats } = require('@nexus/native');
   (async () => { ${body} })()\`, { eval: true, execArgv: [] })`
const imports = `import { Worker } from 'node:worker_threads'; import { once } from 'node:events'\n`

describe('environments', () => {
  it('workers load the addon, one after the other and side by side', async () => {
    const script = `${imports}
      const sums = []
      const work = async () => {
        const w = ${worker(`
          const t = Tensor.from([1, 2, 3], [3], { device: 'cpu' })
          parentPort.postMessage((await t.toFloat32Array()).reduce((a, b) => a + b))`)}
        const ended = once(w, 'exit'); sums.push((await once(w, 'message'))[0]); await ended
      }
      await work(); await work()
      await Promise.all([work(), work(), work()])
      console.log(sums.join(' '))`
    expect(await run(script)).toEqual(ok('6 6 6 6 6'))
  })

  it('a worker may be terminated in the middle of uploads and downloads, also where only workers load the addon', async () => {
    const script = `${imports}
      for (let round = 0; round < 8; round++) {
        const w = ${worker(`
          const data = new Float32Array(6_000_000).fill(1)
          const tensors = Array.from({ length: 3 }, () => Tensor.empty([data.length], { device: 'cpu', dtype: 'f16' }))
          for (const t of tensors) void t.write(data)
          for (const t of tensors) void t.toFloat32Array()
          const more = () => { for (const t of tensors) void t.write(data.subarray(0, 100)).then(() => t.toArray()); setImmediate(more) }
          more()
          parentPort.postMessage('running')`)}
        await once(w, 'message')
        await new Promise((r) => setTimeout(r, round * 3))
        await w.terminate()
      }
      console.log('alive')`
    expect(await run(script)).toEqual(ok('alive'))
  })

  it('memory of a terminated worker is given back', async () => {
    const script = `${imports} import { memoryStats, Tensor, Stream } from '@nexus/native'
      const own = Tensor.zeros([10], { device: 'cpu' })
      const before = memoryStats('cpu').liveBytes
      for (let i = 0; i < 5; i++) {
        const w = ${worker(`globalThis.kept = Tensor.zeros([100_000], { device: 'cpu' }); parentPort.postMessage(1); setInterval(() => {}, 1000)`)}
        await once(w, 'message'); await w.terminate()
      }
      for (let i = 0; i < 200 && memoryStats('cpu').liveBytes !== before; i++) await new Promise((r) => setTimeout(r, 10))
      console.log(memoryStats('cpu').liveBytes - before)`
    expect(await run(script)).toEqual(ok('0'))
  })

  it('a pending promise keeps the process alive until it settles; nothing does afterwards', async () => {
    const script = `import { Tensor } from '@nexus/native'
      const t = Tensor.randn([3_000_000], { device: 'cpu' })
      t.toFloat32Array().then((a) => console.log(a.length))`
    expect(await run(script)).toEqual(ok('3000000'))
  })

  it('process.exit() with promises pending ends quietly', async () => {
    const script = `import { Tensor } from '@nexus/native'
      const data = new Float32Array(8_000_000)
      const t = Tensor.empty([data.length], { device: 'cpu', dtype: 'bf16' })
      for (let i = 0; i < 4; i++) { void t.write(data); void t.toFloat32Array() }
      setTimeout(() => { console.log('leaving'); process.exit(0) }, 5)`
    expect(await run(script)).toEqual(ok('leaving'))
  })

  it('what is not disposed is freed when it is collected', async () => {
    const script = `import { memoryStats, Stream, Tensor } from '@nexus/native'
      await Stream.default('cpu').synchronize()
      const before = memoryStats('cpu').liveBytes
      let kept = Array.from({ length: 10 }, () => Tensor.zeros([250_000], { device: 'cpu' }))
      const held = memoryStats('cpu').liveBytes - before
      kept = null
      for (let i = 0; i < 50 && memoryStats('cpu').liveBytes !== before; i++) {
        globalThis.gc()
        await new Promise((r) => setTimeout(r, 10))
      }
      console.log(held, memoryStats('cpu').liveBytes - before)`
    expect(await run(script)).toEqual(ok('10000000 0'))
  })

  it('V8 knows how large a tensor is: it collects before forgotten ones fill the memory', async () => {
    const script = `import { memoryStats, Tensor } from '@nexus/native'
      import { setImmediate as turn } from 'node:timers/promises'
      for (let i = 0; i < 500; i++) {
        Tensor.empty([1_000_000], { device: 'cpu' })
        if (i % 5 === 0) await turn()
      }
      console.log(memoryStats('cpu').peakBytes < 1_000_000_000)`
    expect(await run(script)).toEqual(ok('true'))
  })
})
