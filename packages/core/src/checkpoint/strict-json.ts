/**
 * JSON that says what it means. `JSON.parse` silently keeps the last of two equal keys and takes `1e3` or `1.0` for an integer;
 * a safetensors header with either is malformed and could show one reader another file than the next reader. So the text is
 * parsed natively, which proves the grammar, and then scanned once for what the grammar allows and the format does not.
 */
const quote = 0x22
const backslash = 0x5c
const comma = 0x2c
const openBrace = 0x7b
const closeBrace = 0x7d
const openBracket = 0x5b
const closeBracket = 0x5d

/** A header nests 3 deep, a config.json little more; without a limit a crafted one would exhaust the stack of whoever walks it. */
const maxDepth = 64

export interface StrictJsonOptions {
  /** Refuse numbers that are not written as plain non-negative integers. @default false */
  readonly integersOnly?: boolean
}

/** Decodes UTF-8 strictly: malformed bytes throw a TypeError, a byte-order mark is kept (and then refused as JSON). */
export function decodeUtf8(bytes: Uint8Array): string {
  return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
}

/** Parses `text`; throws SyntaxError for anything malformed, an object with the same key twice, or absurd nesting. */
export function parseStrictJson(text: string, options: StrictJsonOptions = {}): unknown {
  const value: unknown = JSON.parse(text)
  scan(text, options.integersOnly ?? false)
  return value
}

/** True for `{...}`: not null, not an array. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Walks text that is known to be JSON. The stack holds the keys seen so far of each open object, null for an array. */
function scan(text: string, integersOnly: boolean): void {
  const open: (Set<string> | null)[] = []
  let expectKey = false
  for (let i = 0; i < text.length; ) {
    const c = text.charCodeAt(i)
    if (c === quote) {
      const end = stringEnd(text, i)
      if (expectKey) {
        noteKey(open, text.slice(i, end))
        expectKey = false
      }
      i = end
      continue
    }
    if (c === openBrace) {
      open.push(new Set())
      expectKey = true
    } else if (c === openBracket) {
      open.push(null)
    } else if (c === closeBrace || c === closeBracket) {
      open.pop()
      expectKey = false
    } else if (c === comma) {
      expectKey = open.at(-1) instanceof Set
    } else if (integersOnly && (c === 0x2d || (c >= 0x30 && c <= 0x39))) {
      i = integerEnd(text, i)
      continue
    }
    if (open.length > maxDepth) throw new SyntaxError(`nested more than ${maxDepth} deep`)
    i++
  }
}

function noteKey(open: readonly (Set<string> | null)[], token: string): void {
  const keys = open.at(-1)
  const key = token.includes('\\') ? String(JSON.parse(token)) : token.slice(1, -1)
  if (keys?.has(key)) throw new SyntaxError(`the key ${token.slice(0, 200)} occurs twice in one object`)
  keys?.add(key)
}

function stringEnd(text: string, start: number): number {
  let i = start + 1
  for (; text.charCodeAt(i) !== quote; i++) if (text.charCodeAt(i) === backslash) i++
  return i + 1
}

function integerEnd(text: string, start: number): number {
  let end = start
  while (end < text.length && '+-.eE0123456789'.includes(text.charAt(end))) end++
  const token = text.slice(start, end)
  if (!/^\d+$/.test(token)) throw new SyntaxError(`the number ${token.slice(0, 40)} is not a non-negative integer`)
  return end
}
