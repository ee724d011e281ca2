/** The one file of this package that touches the native binding: which stream writes a tensor. */
export { setTensorStream } from '@nexus/native/binding'
