// What docs/streams.md shows runs as it is printed.
import { readFileSync } from 'node:fs'
import * as native from '@nexus/native'
import * as kernels from '@nexus/router-kernels'
import * as slices from '@nexus/slices'
import { expect, it } from 'vitest'
import * as streams from '../src/index.js'
import { onEachDevice, planOf } from './support/work.js'

const text = readFileSync(new URL('../../../docs/streams.md', import.meta.url), 'utf8')

function shown(name: string): string {
  const [, code = ''] = new RegExp(`<!-- ${name} -->\\s*\`\`\`js\\n([\\s\\S]*?)\`\`\``).exec(text) ?? []
  expect(code).not.toBe('')
  return code
}

const packages: Record<string, object> = {
  '@nexus/native': native,
  '@nexus/router-kernels': kernels,
  '@nexus/slices': slices,
  '@nexus/streams': streams,
}

/** Runs code whose imports are of Nexus packages, and returns what `result` names. */
async function run(code: string, result: string): Promise<unknown> {
  const body = code.replace(
    /import \{([^}]*)\} from '([^']*)'/g,
    (_, names: string, from: string) => `const {${names}} = packages['${from}']`,
  )
  const AsyncFunction = Object.getPrototypeOf(async () => undefined).constructor as FunctionConstructor
  return await (new AsyncFunction('packages', 'console', `${body}\nreturn ${result}`)(packages, {
    log: () => undefined,
  }) as Promise<unknown>)
}

onEachDevice('the documented', (device) => {
  it('schedule runs', async () => {
    const code = shown('schedule').replace("['auto', 8]", `['${device}', 8]`)
    // The default device of what has no `device` is the best there is: the same where this is that one.
    const own = code
      .replace("dtype: 'f32' })", `dtype: 'f32', device })`)
      .replace('Tensor.randn([32, 64])', 'Tensor.randn([32, 64], { device })')
      .replace('topK: 2 })', 'topK: 2, device })')
      .replace('{ seed: 1 }', '{ seed: 1, device }')
    const names = '{ tenants, tensor, steps, enforcer, manager, experts }'
    const made = (await run(own, names)) as {
      tenants: streams.TenantResult[]
      tensor: native.Tensor
      steps: streams.Schedule
      enforcer: slices.SliceEnforcer
      manager: slices.SliceManager
      experts: kernels.GroupedExperts
    }
    expect(made.tenants.map(({ name, slice, error }) => [name, slice, error])).toEqual([
      ['moe', null, null],
      ['decode', 'decode', null],
    ])
    expect(made.tensor.shape).toEqual([1024])
    made.steps.dispose()
    made.manager.dispose()
    made.enforcer.dispose()
    made.experts.dispose()
  })

  it('tenant is one', async () => {
    const tick = (await run(shown('tenant'), 'tick')) as streams.TenantObject & { steps: number }
    const held = planOf(device, 'none', 2, [0, 1])
    using steps = streams.schedule(held.plan, { tenants: [tick] })
    const { tenants } = await steps.run()
    expect(tenants[0]).toMatchObject({ name: 'tick', value: 1, error: null })
    expect(steps.tenant('tick').enqueue(2).value).toBe(3)
    steps.dispose()
    held.dispose()
  })
})

it('the documented strategy conforms', async () => {
  const strategy = (await run(shown('own strategy'), 'hottestAlone')) as streams.AssignmentStrategy
  expect(streams.assignmentConformance(strategy)).toEqual([])
  expect(streams.assign(strategy, [1, 9, 1, 1], 2)).toEqual([1, 0, 1, 1])
})
