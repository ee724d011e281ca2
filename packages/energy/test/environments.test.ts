// Monitors whose environment goes: processes that end, workers that are terminated, handles that are dropped. Each case is a process of
// its own, so that a crash or a hang is seen.
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { loadAddon } from '@nexus/native/binding'
import { describe, expect, it } from 'vitest'
import { fakeNvml, gpu0, noFakeNvml } from './support/fakes.js'

const root = fileURLToPath(new URL('..', import.meta.url))

function run(script: string): Promise<{ error: unknown; out: string; err: string }> {
  const args = ['--expose-gc', '--input-type=module', '--eval', script]
  const env = { ...process.env, NEXUS_NATIVE_PATH: loadAddon().path }
  return new Promise((resolve) => {
    execFile(process.execPath, args, { cwd: root, env, timeout: 20_000, killSignal: 'SIGKILL' }, (error, out, err) => {
      resolve({ error, out: out.trim(), err: err.trim() })
    })
  })
}
const ok = (out: string) => ({ error: null, out, err: '' })

const setUp = `
  import { readdirSync, readFileSync } from 'node:fs'
  import { Worker } from 'node:worker_threads'
  import { once } from 'node:events'
  import { setTimeout as sleep } from 'node:timers/promises'
  import { binding } from '@nexus/native/binding'
  const { energy, native } = binding()
  const gpu = '${gpu0}'
  const threads = () => readdirSync('/proc/self/task').filter((t) => {
    try { return readFileSync('/proc/self/task/' + t + '/comm', 'utf8').trim() === 'nexus-sampler' } catch { return false }
  }).length
  const gone = async () => { for (let i = 0; i < 300 && threads() > 0; i++) { globalThis.gc(); await sleep(10) } return threads() }
`

describe.skipIf(noFakeNvml)(`environments${noFakeNvml === null ? '' : ` (${noFakeNvml})`}`, () => {
  it('a process ends with monitors running', async () => {
    fakeNvml('tick_ms 10', 'gpm 0 1 2 3 4')
    expect(
      await run(`${setUp}
      globalThis.kept = [energy.monitorStart(gpu, 1, 100), energy.monitorStart('cpu', 1, 100)]
      const some = () => energy.monitorRead(globalThis.kept[0], 0).samples.length > 0
      for (let i = 0; i < 500 && !some(); i++) await sleep(10)
      console.log(some(), threads())`),
    ).toEqual(ok('true 1'))
  })

  it('a process ends while NVML hangs', async () => {
    const nvml = fakeNvml('hang nvmlDeviceGetTotalEnergyConsumption')
    const start = performance.now()
    expect(
      await run(`${setUp}
      const m = energy.monitorStart(gpu, 10, 100)
      await sleep(100)
      console.log(energy.monitorRead(m, 0).blockedCall)
      process.exit(0)`),
    ).toEqual(ok('nvmlDeviceGetTotalEnergyConsumption'))
    expect(performance.now() - start).toBeLessThan(10_000)
    nvml.say()
  })

  it('a worker that is terminated takes its monitors along, and its thread ends', async () => {
    fakeNvml('tick_ms 10')
    expect(
      await run(`${setUp}
      for (let round = 0; round < 6; round++) {
        const w = new Worker(\`
          const { binding } = require('@nexus/native/binding'); const { parentPort } = require('node:worker_threads')
          const { energy } = binding(); globalThis.kept = [energy.monitorStart('\${gpu}', 1, 10), energy.monitorStart('cpu', 1, 10)]
          parentPort.postMessage(1); setInterval(() => { for (const m of globalThis.kept) energy.monitorRequest(m) }, 1)\`,
          { eval: true, execArgv: [] })
        await once(w, 'message')
        await sleep(5 * round)
        await w.terminate()
      }
      console.log(await gone())`),
    ).toEqual(ok('0'))
  })

  it('a monitor that was dropped without dispose is collected, and one that is released refuses use', async () => {
    fakeNvml('tick_ms 10')
    expect(
      await run(`${setUp}
      ;(() => { for (let i = 0; i < 50; i++) energy.monitorStart(gpu, 5, 100) })()
      console.log(await gone())
      const m = energy.monitorStart('cpu', 10, 10)
      native.release(m)
      try { energy.monitorRead(m, 0) } catch (e) { console.log(e.code, e.message) }
      try { energy.monitorRead({}, 0) } catch (e) { console.log(e.message) }`),
    ).toEqual(
      ok('0\nERR_NEXUS_DISPOSED monitor: this energy monitor was released\nmonitor: expected a handle of this addon'),
    )
  })

  it('starting and stopping a thousand times holds no memory', async () => {
    fakeNvml('tick_ms 10', 'gpm 0 1 2 3 4')
    const result = await run(`${setUp}
      const round = async (n) => {
        for (let i = 0; i < n; i++) { const m = energy.monitorStart(i % 2 ? gpu : 'cpu', 1, 1000); energy.monitorRequest(m); native.release(m) }
        await gone(); globalThis.gc()
        return process.memoryUsage().rss
      }
      await round(500)
      const before = await round(200)
      const after = await round(1000)
      console.log(after - before < 16 * 2 ** 20 ? 'held' : after - before)`)
    expect(result).toEqual(ok('held'))
  })
})
