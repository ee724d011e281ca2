/** What was thrown, in words for a result file or a line of its own. */
export const errorText = (error: unknown): string => (error instanceof Error ? error.message : String(error))
