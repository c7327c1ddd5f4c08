// What an image shows, on a board: the image comes over the serial line, NETWORK_HEIGHT x NETWORK_WIDTH pixels, three
// bytes each; the answer is its label, how sure the network is, and milliseconds. With a camera, fill `rgb` from it.
//
//   mobilenets export runs/photos --to c --out network.c-source --precision int8
//
// Put network.c and network.h beside this file. RAM: NETWORK_ARENA_BYTES, and the image. Where it is in another memory
// than the rest, define NETWORK_SECTION in the board's build flags (see network.c).
#include "network.h"

static uint8_t rgb[NETWORK_HEIGHT * NETWORK_WIDTH * 3];
static float probabilities[NETWORK_CLASSES];

void setup() {
  Serial.begin(115200);
  Serial.setTimeout(10000);
}

void loop() {
  if (Serial.readBytes(reinterpret_cast<char *>(rgb), sizeof rgb) != sizeof rgb) return;
  const unsigned long start = millis();
  if (network_predict(rgb, probabilities) != 0) {
    Serial.println("the network doesn't fit");
    return;
  }
  const unsigned long took = millis() - start;
  int best = 0;
  for (int i = 1; i < NETWORK_CLASSES; i++) {
    if (probabilities[i] > probabilities[best]) best = i;
  }
  Serial.print(network_labels[best]);
  Serial.print(' ');
  Serial.print(100 * probabilities[best]);
  Serial.print("% in ");
  Serial.print(took);
  Serial.println(" ms");
}
