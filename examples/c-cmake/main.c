/* label PHOTO.ppm: what a picture shows. Tools that make a .ppm: `magick photo.jpg photo.ppm`,
 * `djpeg photo.jpg > photo.ppm`. */
#include "network.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct picture {
    int width, height;
    uint8_t *rgb;
};

static int read_picture(const char *path, struct picture *p)
{
    FILE *f = fopen(path, "rb");
    int most = 0, good = 0;
    if (!f)
        return 0;
    if (fscanf(f, "P6 %d %d %d", &p->width, &p->height, &most) == 3 && fgetc(f) != EOF && most == 255 &&
        p->width > 0 && p->height > 0 && p->width <= 16384 && p->height <= 16384) {
        const size_t bytes = (size_t)p->width * (size_t)p->height * 3;
        p->rgb = malloc(bytes);
        good = p->rgb && fread(p->rgb, 1, bytes, f) == bytes;
    }
    fclose(f);
    return good;
}

/* How much pixel `i` of the source counts for a pixel at `centre`, where `scale` pixels become one: a triangle. */
static float weight(int i, float centre, float scale)
{
    const float distance = fabsf((float)i + 0.5f - centre) / scale;
    return distance < 1 ? 1 - distance : 0;
}

/* The middle of a picture, `side` x `side` pixels of it, as the network's input. */
static void shrink(const struct picture *p, float side, uint8_t *out)
{
    const float left = ((float)p->width - side) / 2, top = ((float)p->height - side) / 2;
    const float across = side / NETWORK_WIDTH, down = side / NETWORK_HEIGHT;
    const float wide = across > 1 ? across : 1, high = down > 1 ? down : 1; /* also where it is enlarged */
    for (int y = 0; y < NETWORK_HEIGHT; y++)
        for (int x = 0; x < NETWORK_WIDTH; x++, out += 3) {
            const float cx = left + ((float)x + 0.5f) * across, cy = top + ((float)y + 0.5f) * down;
            float sums[3] = {0, 0, 0}, all = 0;
            for (int j = (int)floorf(cy - high); j <= (int)(cy + high); j++)
                for (int i = (int)floorf(cx - wide); i <= (int)(cx + wide); i++) {
                    if (i < 0 || j < 0 || i >= p->width || j >= p->height)
                        continue;
                    const float w = weight(i, cx, wide) * weight(j, cy, high);
                    const uint8_t *from = p->rgb + ((size_t)j * (size_t)p->width + (size_t)i) * 3;
                    for (int k = 0; k < 3; k++)
                        sums[k] += w * (float)from[k];
                    all += w;
                }
            for (int k = 0; k < 3; k++)
                out[k] = (uint8_t)(sums[k] / all + 0.5f);
        }
}

int main(int count, char **arguments)
{
    static uint8_t rgb[NETWORK_HEIGHT * NETWORK_WIDTH * 3];
    static float probabilities[NETWORK_CLASSES];
    struct picture p = {0, 0, NULL};
    if (count < 2 || !read_picture(arguments[1], &p)) {
        fprintf(stderr, "label: needs a picture, a .ppm of 8 bits (P6)\n");
        free(p.rgb);
        return 1;
    }
    const int narrow = p.width < p.height ? p.width : p.height;
    shrink(&p, NETWORK_CROP * (float)narrow, rgb);
    free(p.rgb);
    if (network_predict(rgb, probabilities))
        return 1;
    int best = 0;
    for (int i = 1; i < NETWORK_CLASSES; i++)
        best = probabilities[i] > probabilities[best] ? i : best;
    printf("%s %.1f%%\n", network_labels[best], 100 * probabilities[best]);
    return 0;
}
