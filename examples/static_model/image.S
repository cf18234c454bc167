// SPDX-License-Identifier: Apache-2.0
//
// The image of the model (static_model --image), in flash.
  .section .model, "a"
  .balign 64
  .global image
image:
  .incbin "static_model.image"
