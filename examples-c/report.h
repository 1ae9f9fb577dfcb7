/*
 * How quickstart.c shows its results: a table on stdout, and a picture of who keeps what as SVG. Nothing here calls
 * lava.h.
 */
#ifndef REPORT_H
#define REPORT_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One way to share a total, measured on one prompt. */
typedef struct {
    const char *method;
    size_t bytes;                   /* K and V afterwards */
    uint32_t least, most;           /* tokens kept by the poorest and the richest head */
    double evicted;                 /* share of LAVa's score mass evicted, mean over layers */
    double error;                   /* relative error of attention's output, mean over layers and decode steps */
    double select_ms, compact_ms;
} report_row;

static inline size_t report_best(const report_row *rows, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (rows[i].error < rows[best].error) best = i;
    return best;
}

/* The rows of one budget; the smallest error is marked. */
static inline void report_group(double ratio, uint32_t budget, size_t bytes_before, const report_row *rows, size_t n) {
    printf("\n  keep %.0f%%: %u tokens per head on average, K+V %zu -> %zu bytes\n", 100 * ratio, budget, bytes_before,
           rows[0].bytes);
    printf("    %-34s %13s %12s %12s   %16s\n", "the same total, shared as", "kept per head", "mass evicted",
           "output error", "select + compact");
    size_t best = report_best(rows, n);
    for (size_t i = 0; i < n; i++) {
        const report_row *r = &rows[i];
        char span[32];
        snprintf(span, sizeof(span), r->least == r->most ? "%u" : "%u to %u", r->least, r->most);
        printf("    %-34s %13s %11.2f%% %11.2f%% %c %5.2f + %.2f ms\n", r->method, span, 100 * r->evicted,
               100 * r->error, i == best ? '<' : ' ', r->select_ms, r->compact_ms);
    }
}

/* What the picture shows: for every layer and KV head, how many tokens are kept, and where in the prompt. */
typedef struct {
    const char *title, *subtitle;
    uint32_t n_layers, n_kv_heads, n_tokens, window;
    const uint32_t *const *indices; /* per layer: token positions, head after head */
    const uint32_t *const *cu;      /* per layer: n_kv_heads + 1 prefix sums */
} report_map;

typedef struct {
    int r, g, b;
} report_rgb;

/* Five stops from light to dark, one hue: lightness alone carries the number, so it reads without colour vision too. */
static const report_rgb REPORT_BLUES[5] = {
    {239, 245, 252}, {189, 215, 238}, {107, 174, 214}, {33, 113, 181}, {8, 40, 92}};
static const report_rgb REPORT_GREYS[5] = {
    {246, 246, 246}, {210, 210, 210}, {150, 150, 150}, {85, 85, 85}, {20, 20, 20}};

static inline report_rgb report_shade(const report_rgb stops[5], double x) {
    x = 4 * (x < 0 ? 0 : x > 1 ? 1 : x);
    int i = x >= 4 ? 3 : (int) x;
    double f = x - i;
    report_rgb a = stops[i], b = stops[i + 1];
    report_rgb c = {(int) (a.r + f * (b.r - a.r) + 0.5), (int) (a.g + f * (b.g - a.g) + 0.5),
                    (int) (a.b + f * (b.b - a.b) + 0.5)};
    return c;
}

/* Black or white, whichever reads better on it. */
static inline const char *report_ink(report_rgb c) {
    return 0.299 * c.r + 0.587 * c.g + 0.114 * c.b > 118 ? "#111" : "#fff";
}

static inline void report_text(FILE *f, double x, double y, const char *style, const char *text) {
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, style);
    for (; *text != '\0'; text++) {
        if (*text == '<') fputs("&lt;", f);
        else if (*text == '&') fputs("&amp;", f);
        else fputc(*text, f);
    }
    fputs("</text>\n", f);
}

static inline void report_box(FILE *f, double x, double y, double w, double h, report_rgb c) {
    fprintf(f, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"#%02x%02x%02x\"/>\n", x, y, w, h,
            c.r, c.g, c.b);
}

/* A colour scale with its title above and its ends below. */
static inline void report_legend(FILE *f, double x, double y, const report_rgb stops[5], const char *title,
                                 const char *low, const char *high) {
    enum { STEPS = 40, WIDTH = 190, HEIGHT = 12 };
    report_text(f, x, y - 6, "", title);
    for (int i = 0; i < STEPS; i++)
        report_box(f, x + (double) i * WIDTH / STEPS, y, (double) WIDTH / STEPS + 0.3, HEIGHT,
                   report_shade(stops, i / (STEPS - 1.0)));
    fprintf(f, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#888\"/>\n", x, y, WIDTH,
            HEIGHT);
    report_text(f, x, y + HEIGHT + 15, "", low);
    report_text(f, x + WIDTH, y + HEIGHT + 15, "text-anchor=\"end\"", high);
}

/*
 * Left, a grid of layers by heads with the kept counts. Right, for every head a strip along the prompt, dark where all
 * tokens are kept and light where none are. False, with the reason on stderr, if the file cannot be written.
 */
static inline bool report_write_svg(const char *path, const report_map *m) {
    enum { N_BINS = 128, BINS_WIDTH = 640, STRIP = 16, GAP = 10, LEFT = 132, TOP = 128 };
    uint32_t n_heads = m->n_kv_heads;
    int row_height = n_heads * STRIP > 40 ? (int) n_heads * STRIP : 40, pitch = row_height + GAP;
    int cell = n_heads < 3 ? 176 / (int) n_heads : 58;
    int right = LEFT + (int) n_heads * cell + 64;  /* where the strips begin */
    int width = right + BINS_WIDTH + 28, bottom = TOP + (int) m->n_layers * pitch, height = bottom + 118;
    uint32_t n_bins = m->n_tokens < N_BINS ? m->n_tokens : (uint32_t) N_BINS, most = 1;
    for (uint32_t l = 0; l < m->n_layers; l++)
        for (uint32_t h = 0; h < n_heads; h++)
            if (m->cu[l][h + 1] - m->cu[l][h] > most) most = m->cu[l][h + 1] - m->cu[l][h];

    FILE *f = fopen(path, "wb");  /* the same bytes on every system, Windows' too */
    if (f == NULL) {
        fprintf(stderr, "cannot write %s: %s\n", path, strerror(errno));
        return false;
    }
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
               "font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#222\">\n",
            width, height, width, height);
    fprintf(f, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", width, height);
    report_text(f, 20, 34, "font-size=\"19\" font-weight=\"bold\"", m->title);
    report_text(f, 20, 58, "fill=\"#555\"", m->subtitle);
    report_text(f, LEFT, TOP - 30, "font-weight=\"bold\"", "Tokens kept by each KV head");
    report_text(f, right, TOP - 30, "font-weight=\"bold\"", "Where they are in the prompt");

    char text[96];
    for (uint32_t h = 0; h < n_heads; h++) {
        snprintf(text, sizeof(text), n_heads <= 4 ? "head %u" : "%u", h);
        report_text(f, LEFT + (h + 0.5) * cell, TOP - 9, "text-anchor=\"middle\"", text);
    }
    report_text(f, right, TOP - 9, "fill=\"#555\"", "one strip per KV head");

    for (uint32_t l = 0; l < m->n_layers; l++) {
        double y = TOP + (double) l * pitch;
        snprintf(text, sizeof(text), "layer %u", l);
        report_text(f, LEFT - 12, y + row_height / 2.0 - 3, "text-anchor=\"end\"", text);
        snprintf(text, sizeof(text), "%.1f%% kept", 100.0 * m->cu[l][n_heads] / ((double) n_heads * m->n_tokens));
        report_text(f, LEFT - 12, y + row_height / 2.0 + 13, "text-anchor=\"end\" font-size=\"11\" fill=\"#555\"",
                    text);
        for (uint32_t h = 0; h < n_heads; h++) {
            uint32_t begin = m->cu[l][h], end = m->cu[l][h + 1];
            report_rgb shade = report_shade(REPORT_BLUES, (double) (end - begin) / most);
            report_box(f, LEFT + (double) h * cell, y, cell - 2, row_height, shade);
            snprintf(text, sizeof(text), "text-anchor=\"middle\" font-size=\"15\" style=\"fill:%s\"",
                     report_ink(shade));
            char number[16];
            snprintf(number, sizeof(number), "%u", end - begin);
            report_text(f, LEFT + h * cell + cell / 2.0 - 1, y + row_height / 2.0 + 5, text, number);

            double strip = (double) row_height / n_heads, at = y + h * strip;
            if (n_heads <= 8) {
                snprintf(number, sizeof(number), "%u", h);
                report_text(f, right - 8, at + strip / 2 + 4, "text-anchor=\"end\" font-size=\"11\" fill=\"#555\"",
                            number);
            }
            for (uint32_t b = 0, i = begin; b < n_bins; b++) {  /* bin b: tokens n*b/n_bins up to n*(b+1)/n_bins */
                uint32_t from = (uint32_t) ((uint64_t) m->n_tokens * b / n_bins);
                uint32_t to = (uint32_t) ((uint64_t) m->n_tokens * (b + 1) / n_bins), kept = 0;
                for (; i < end && m->indices[l][i] < to; i++) kept++;
                report_box(f, right + (double) BINS_WIDTH * from / m->n_tokens, at,
                           (double) BINS_WIDTH * (to - from) / m->n_tokens + 0.3, strip - 2,
                           report_shade(REPORT_GREYS, (double) kept / (to - from)));
            }
        }
    }

    /* the axis, and where the window begins */
    uint32_t step = 1;
    while (m->n_tokens / step > 6) step *= 2;
    for (uint32_t t = 0, next; t <= m->n_tokens; t = next) {
        next = t < m->n_tokens && t + step + step / 3 > m->n_tokens ? m->n_tokens : t + step;
        double x = right + (double) BINS_WIDTH * t / m->n_tokens;
        fprintf(f, "<path d=\"M%.1f %d v5\" stroke=\"#555\"/>\n", x, bottom - GAP + 2);
        snprintf(text, sizeof(text), "%u", t);
        report_text(f, x, bottom - GAP + 21, "text-anchor=\"middle\" font-size=\"12\"", text);
    }
    report_text(f, right + BINS_WIDTH / 2.0, bottom - GAP + 40, "text-anchor=\"middle\"", "token position");
    double window = right + (double) BINS_WIDTH * (m->n_tokens - m->window) / m->n_tokens;
    fprintf(f, "<path d=\"M%.1f %d V%d\" stroke=\"#d95f02\" stroke-width=\"1.5\" stroke-dasharray=\"4 3\"/>\n", window,
            TOP - 20, bottom - GAP + 2);
    snprintf(text, sizeof(text), "last %u tokens: always kept", m->window);
    report_text(f, window - 6, TOP - 9, "text-anchor=\"end\" font-size=\"12\" style=\"fill:#b34700\"", text);

    char high[32];
    snprintf(high, sizeof(high), "%u", most);
    report_legend(f, LEFT, bottom + 70, REPORT_BLUES, "tokens kept by a head", "0", high);
    snprintf(text, sizeof(text), "share kept of each %u tokens", (m->n_tokens + n_bins / 2) / n_bins);
    report_legend(f, right + BINS_WIDTH - 190, bottom + 70, REPORT_GREYS, text, "none", "all");
    fputs("</svg>\n", f);
    bool failed = ferror(f) != 0;
    failed |= fclose(f) != 0;
    if (failed) fprintf(stderr, "cannot write all of %s\n", path);
    return !failed;
}

#endif
