/** Marks the name of a test that `needs` left out; scripts/closing-line.ts lists the tests that carry it. */
export const LEFT_OUT = '(left out:'
