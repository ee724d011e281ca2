// What child programs of fault tests share: they run one scenario of theirs on one device and print its result as JSON.
//   node PROGRAM SCENARIO DEVICE GIVEN-AS-JSON
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { memoryStats, Stream } from '@nexus/native'

export { sleep }
export const [scenario, device] = process.argv.slice(2)
/** What the test told the scenario. */
export const given = JSON.parse(process.argv[4] ?? '{}')

/** The next faults are these (fault.h), counted from now on. */
export function arm(text) {
  delete process.env.NEXUS_FAULT
  process.env.NEXUS_FAULT = text
}
export function disarm() {
  delete process.env.NEXUS_FAULT
}

/** An error as plain data. */
export function failure(error) {
  const { name, code = null, message } = error
  const { nativeError, requestedSms, freeSms } = error
  const more = { nativeError, requestedSms, freeSms, cause: error.cause?.name }
  return { name, code, message, ...JSON.parse(JSON.stringify(more)) }
}

/** The error of what throws or rejects; `null` when it does not. */
export async function caught(body) {
  try {
    await body()
    return null
  } catch (error) {
    return failure(error)
  }
}

/** Threads of the addon, by name. */
export function threads() {
  const found = {}
  for (const task of readdirSync('/proc/self/task')) {
    let name
    try {
      name = readFileSync(`/proc/self/task/${task}/comm`, 'utf8').trim()
    } catch {
      continue // it ended
    }
    if (name.startsWith('nexus-')) found[name] = (found[name] ?? 0) + 1
  }
  return found
}

/** What is held by what lives; more: further figures to watch. CUDA's driver opens files of its own, when it likes. */
export function held(more = () => ({})) {
  const { liveBytes, liveBuffers } = memoryStats(device)
  const files = device === 'cpu' ? readdirSync('/proc/self/fd').length : null
  return { liveBytes, liveBuffers, threads: threads(), files, ...more() }
}

/** What is held once nothing changes any more: threads end and streams let go in their own time. Without a collection: what is collected was lost. */
export async function steady(more) {
  let last = null
  for (let quiet = 0; quiet < 10; ) {
    await Stream.default(device).synchronize()
    const now = held(more)
    quiet = last !== null && same(now, last) ? quiet + 1 : 0
    last = now
    await sleep(10)
  }
  return last
}

/** Waits until what is held is what was held before; then `null`, otherwise, after a while, both. */
export async function backTo(before, more, timeoutMs = 5000) {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    await Stream.default(device)
      .synchronize()
      .catch(() => undefined)
    const now = held(more)
    if (same({ ...now, threads: null }, { ...before, threads: null }) && noMoreThreads(now.threads, before.threads))
      return null
    if (performance.now() > deadline) return { before, now }
    await sleep(5)
  }
}

/**
 * Fewer are as good: those of a warm-up may have ended since. A thread that CUDA's driver starts has the name of the one it was started from,
 * so there may be one more of those that call it.
 */
function noMoreThreads(now, before) {
  const spare = device === 'cpu' ? 0 : 1
  return Object.entries(now).every(([name, count]) => count <= (before[name] ?? 0) + spare)
}

function same(a, b) {
  const sorted = (_, value) =>
    typeof value === 'object' && value !== null ? Object.fromEntries(Object.entries(value).sort()) : value
  return JSON.stringify(a, sorted) === JSON.stringify(b, sorted)
}

/** Milliseconds that something took. */
export async function timed(body) {
  const start = performance.now()
  await body()
  return performance.now() - start
}

/** What has become of a promise within a while. */
export async function fate(promise, ms) {
  const over = new AbortController()
  const settled = promise.then(
    () => 'resolved',
    (error) => error.code ?? error.name,
  )
  try {
    return await Promise.race([settled, sleep(ms, 'pending', { signal: over.signal }).catch(() => 'pending')])
  } finally {
    over.abort()
  }
}

export const print = (result) => process.stdout.write(`${JSON.stringify(result)}\n`)

/** Runs the scenario that was asked for. The process ends by itself, unless the scenario ends it. */
export async function run(scenarios) {
  const body = scenarios[scenario]
  if (body === undefined) throw new Error(`no scenario '${scenario}'`)
  const result = await body()
  if (result !== undefined) print(result)
}
