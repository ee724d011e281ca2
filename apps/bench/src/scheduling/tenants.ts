/** The two tenants of the isolation benchmark, and the ways in which they share the device. */
import {
  type TenantArrangement as Arrangement,
  type DeviceSpec,
  MoELayer,
  SlicePartition,
  Stream,
  Tensor,
  tenant,
} from '@nexus/core'
import { layerOptions } from '../layer-options.js'
import { Owned } from '../owned.js'
import { cellLogits } from '../random.js'
import type { Shape } from '../shapes.js'
import { Loop } from './loop.js'

/** A layer with one batch of inputs, which steps on any stream. */
export class Tenant {
  private constructor(
    readonly name: string,
    readonly shape: Shape,
    readonly tokens: number,
    readonly layer: MoELayer,
    readonly x: Tensor,
    readonly logits: Tensor,
    readonly out: Tensor,
  ) {}

  static async create(name: string, shape: Shape, tokens: number, device: DeviceSpec, seed: number): Promise<Tenant> {
    const layer = await MoELayer.create({
      ...layerOptions(shape, device, 'bf16'),
      seed,
      graphs: { captureAfter: 2 },
    })
    const [logits] = cellLogits(tokens, shape.experts, 1, 0, seed)
    if (!logits) throw new RangeError('logits: expected one batch, got none')
    return new Tenant(
      name,
      shape,
      tokens,
      layer,
      Tensor.randn([tokens, shape.hidden], { dtype: 'bf16', device, seed: seed + 7 }),
      Tensor.from(logits, [tokens, shape.experts], { device }),
      Tensor.empty([tokens, shape.hidden], { dtype: 'bf16', device }),
    )
  }

  step(stream: Stream): void {
    this.layer[tenant](stream, this.x, { logits: this.logits, out: this.out })
  }

  dispose(): void {
    this.layer.dispose()
    for (const tensor of [this.x, this.logits, this.out]) tensor.dispose()
  }
}

/** The loops of an arrangement, and what has to be given back after them. */
export interface Arranged {
  readonly decode: Loop
  readonly prefill: Loop
  readonly loops: readonly Loop[]
  dispose(): void
}

const decodeDepth = 16
const prefillDepth = 3

/** Sets two tenants up in an arrangement; `sms` are decode's and prefill's. */
export function arrangeTenants(arrangement: Arrangement, decode: Tenant, prefill: Tenant): Arranged {
  const { device } = decode.layer
  const owned = new Owned()
  const { own } = owned
  const dispose = () => owned.dispose()
  const side = (decodeStream: Stream, prefillStream: Stream): Arranged => {
    const first = own(new Loop('decode', decodeStream, () => decode.step(decodeStream), decodeDepth))
    const second = own(new Loop('prefill', prefillStream, () => prefill.step(prefillStream), prefillDepth))
    return { decode: first, prefill: second, loops: [first, second], dispose }
  }
  try {
    const [decodeSms = 0, prefillSms = 0] = arrangement.sms ?? []
    switch (arrangement.kind) {
      case 'alternating': {
        // One stream: each decode step waits for a prefill step, and both are over when the mark behind decode is.
        const stream = own(Stream.create({ device }))
        const turn = () => {
          prefill.step(stream)
          decode.step(stream)
        }
        const loop = own(new Loop('both', stream, turn, 4))
        return { decode: loop, prefill: loop, loops: [loop], dispose }
      }
      case 'streams':
        return side(own(Stream.create({ device })), own(Stream.create({ device })))
      case 'priorities':
        return side(own(Stream.create({ device, priority: -5 })), own(Stream.create({ device })))
      case 'grid-cap':
        return side(own(Stream.create({ device, priority: -5 })), own(Stream.create({ device, maxWidth: prefillSms })))
      case 'co-resident':
        return side(
          own(Stream.create({ device, priority: -5, shareSm: true })),
          own(Stream.create({ device, shareSm: true })),
        )
      case 'slices': {
        const slices = [
          { name: 'decode', sms: decodeSms },
          { name: 'prefill', sms: prefillSms },
        ]
        const partition = own(SlicePartition.build(device, slices))
        const [decodeAhead, prefillAhead] = arrangement.readAheadBytes ?? []
        return side(
          partition.stream('decode', { readAheadBytes: decodeAhead ?? undefined }),
          partition.stream('prefill', { readAheadBytes: prefillAhead ?? undefined }),
        )
      }
    }
  } catch (error) {
    dispose()
    throw error
  }
}

/** One tenant alone on a stream. */
export function alone(tenantOf: Tenant, stream: Stream): Loop {
  return new Loop(
    tenantOf.name,
    stream,
    () => tenantOf.step(stream),
    tenantOf.tokens > 512 ? prefillDepth : decodeDepth,
  )
}
