/**
 * What is to be beaten: the best peers' times on an H200, measured once with packages that are not at hand everywhere (peers/anchors-h200.json).
 * A time from there counts here scaled by what PyTorch's grouped_mm takes now over what it took there, and is labelled so.
 */
import { readFileSync } from 'node:fs'
import { anchorsFile } from '../paths.js'
import type { Cell } from './cells.js'
import type { LayerRow } from './measure.js'

export interface AnchorRow {
  readonly shape: string
  readonly tokens: number
  readonly skew: number
  readonly expertsHit: number
  readonly limitUs: number
  readonly bestPeer: string
  readonly bestPeerUs: number
  readonly vllmUs: number | null
  readonly torchGroupedMmUs: number | null
}

let rows: readonly AnchorRow[] | null = null

/** All rows of the anchors, in the order of their file. */
export function anchors(): readonly AnchorRow[] {
  rows ??= (JSON.parse(readFileSync(anchorsFile, 'utf8')) as { rows: readonly AnchorRow[] }).rows
  return rows
}

export const anchorOf = (cell: Pick<Cell, 'tokens' | 'skew'> & { readonly shape: string }): AnchorRow | null =>
  anchors().find((row) => row.shape === cell.shape && row.tokens === cell.tokens && row.skew === cell.skew) ?? null

/** How a peer is called whose time is an anchor's. */
export const scaledName = (peer: string): string => `${peer} (anchor, scaled)`

export const isScaled = (name: string): boolean => name.endsWith(' (anchor, scaled)')

/**
 * The anchors' times for peers that did not run in this call.
 * @param measured - microseconds of the peers that did
 * @returns `{}` where torch_grouped_mm did not run, since there is nothing to scale by
 */
export function scaledPeers(anchor: AnchorRow, measured: Readonly<Record<string, number>>): Record<string, number> {
  const { bestPeer, bestPeerUs, vllmUs, torchGroupedMmUs } = anchor
  const now = measured.torch_grouped_mm
  if (now === undefined || torchGroupedMmUs === null) return {}
  const scale = now / torchGroupedMmUs
  const scaled: Record<string, number> = {}
  if (measured[bestPeer] === undefined) scaled[scaledName(bestPeer)] = bestPeerUs * scale
  // The best of the configurations and the picked one are the same kernel: one entry is enough.
  if (vllmUs !== null && !bestPeer.startsWith('vllm')) scaled[scaledName('vllm_triton')] = vllmUs * scale
  return scaled
}

/** Adds the anchors' scaled times for peers that did not run. */
export function withAnchors(row: LayerRow): LayerRow {
  const anchor = anchorOf(row)
  return anchor === null ? row : { ...row, peers: { ...row.peers, ...scaledPeers(anchor, row.peers) } }
}
