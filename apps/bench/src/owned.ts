/** What a measurement makes for itself. */
export class Owned {
  readonly #made: { dispose(): void }[] = []

  /** It is disposed of with the others, the last one first. */
  readonly own = <T extends { dispose(): void }>(each: T): T => {
    this.#made.push(each)
    return each
  }

  dispose(): void {
    for (const each of this.#made.splice(0).reverse()) each.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
