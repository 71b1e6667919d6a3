/* parse.c - see parse.h. */
#include "verify/parse.h"
#include <arpa/inet.h>
#include <errno.h>
#include <time.h>

/* ---- trouble -------------------------------------------------------------------------------------------------------- */

/* Texts of hccn_tool (its error table) and npu-smi, matched anywhere. The first row that is found counts, so that the
 * telling ones stand before the general ones. */
static const struct {
        const char *text;
        enum trouble trouble;
} trouble_texts[] = {
    {"permission denied", TROUBLE_PERMISSION},
    {"check cmd run permission", TROUBLE_PERMISSION},
    {"Get device health status failed", TROUBLE_HEALTH},
    {"is busy, please try again", TROUBLE_BUSY},
    {"I2c is busy", TROUBLE_BUSY},
    {"Get lock failed", TROUBLE_BUSY},
    {"device is occupied", TROUBLE_BUSY},
    {"command is not supported on this product", TROUBLE_UNSUPPORTED},
    {"does not support querying spod-info", TROUBLE_UNSUPPORTED},
    {"does not support this command", TROUBLE_UNSUPPORTED},
    {"Command unsupported on this optical module", TROUBLE_UNSUPPORTED},
    {"device is not exist", TROUBLE_NO_DEVICE},
    {"Get invalid device id", TROUBLE_NO_DEVICE},
    {"Error parameter of", TROUBLE_NO_DEVICE},
    {"Link status is down", TROUBLE_LINK_DOWN},
    {"was preset there", TROUBLE_NOT_PRESET},
    {"Optical module is not present", TROUBLE_NOT_PRESENT},
    {"optical module initializing", TROUBLE_STARTING},
    {"Control link unreachable", TROUBLE_FAILED},
    {"cmd line execute timeout", TROUBLE_FAILED},
    {"execute failed", TROUBLE_FAILED},
    {"Execute failed", TROUBLE_FAILED},
    {"failed, because", TROUBLE_FAILED},
    {"can't access", TROUBLE_FAILED},
    {"Get invalid", TROUBLE_FAILED},
    {"Get unknown option", TROUBLE_FAILED},
    {"Certificate has expired", TROUBLE_FAILED},
    {"certificates are illegal", TROUBLE_FAILED},
};

static bool holds(struct slice text, const char *needle) {
        return slice_find_slice(text, slice_str(needle), 0) < text.len;
}

static bool next_line(struct slice *text, struct slice *ret_line) {
        if (!slice_split(text, '\n', ret_line))
                return false;
        *ret_line = slice_trim(*ret_line);
        return true;
}

static struct slice line_at(struct slice text, size_t at) {
        size_t from = at;

        while (from > 0 && text.ptr[from - 1] != '\n')
                from--;
        return slice_trim(slice_sub(text, from, slice_find(text, '\n', at)));
}

static bool find_trouble(struct slice text, enum trouble *trouble, struct slice *ret_said) {
        for (size_t i = 0; i < sizeof(trouble_texts) / sizeof(*trouble_texts); i++) {
                size_t at = slice_find_slice(text, slice_str(trouble_texts[i].text), 0);

                if (at >= text.len)
                        continue;
                *trouble = trouble_texts[i].trouble;
                *ret_said = line_at(text, at);
                return true;
        }
        return false;
}

static struct slice first_words(struct slice text) {
        struct slice line;

        while (next_line(&text, &line))
                if (line.len)
                        return slice_sub(line, 0, 200);
        return SLICE_LIT("");
}

enum trouble answer_trouble(const struct answer *a, struct slice *ret_said) {
        enum trouble trouble;

        *ret_said = SLICE_LIT("");
        switch (a->state) {
        case ANSWER_NO_NODE:
                *ret_said = first_words(a->err);
                return TROUBLE_NO_NODE;
        case ANSWER_NO_TOOL:
                return TROUBLE_NO_TOOL;
        case ANSWER_LATE:
                return TROUBLE_LATE;
        case ANSWER_GIVEN:
                break;
        }
        if (find_trouble(a->out, &trouble, ret_said) || find_trouble(a->err, &trouble, ret_said))
                return trouble;
        if (a->status) {
                *ret_said = first_words(a->err);
                if (!ret_said->len)
                        *ret_said = first_words(a->out);
                return TROUBLE_FAILED;
        }
        return first_words(a->out).len ? TROUBLE_NONE : TROUBLE_EMPTY;
}

/* ---- fields --------------------------------------------------------------------------------------------------------- */

/* "[devid 3]link up count : 4", "[device 3]…": what stands behind the bracket. */
static struct slice without_device(struct slice line) {
        if (slice_starts(line, SLICE_LIT("[dev"))) {
                size_t end = slice_find(line, ']', 0);

                if (end < line.len)
                        return slice_trim(slice_sub(line, end + 1, line.len));
        }
        return line;
}

static bool value_of(struct slice line, struct slice key, struct slice *ret_value) {
        struct slice rest;

        line = without_device(line);
        if (!slice_starts(line, key))
                return false;
        rest = slice_trim(slice_sub(line, key.len, line.len));
        if (!rest.len || rest.ptr[0] != ':')
                return false;
        *ret_value = slice_trim(slice_sub(rest, 1, rest.len));
        return true;
}

int parse_value(struct slice out, const char *key, struct slice *ret_value) {
        struct slice line;

        while (next_line(&out, &line))
                if (value_of(line, slice_str(key), ret_value))
                        return 0;
        return -EINVAL;
}

int parse_number(struct slice out, const char *key, uint64_t *ret_value) {
        struct slice value;

        return parse_value(out, key, &value) < 0 ? -EINVAL : slice_to_u64(value, ret_value);
}

int parse_ipv4(struct slice text, uint32_t *ret_address) {
        char copy[INET_ADDRSTRLEN];
        struct in_addr a;

        if (!text.len || text.len >= sizeof(copy) || slice_find(text, 0, 0) < text.len)
                return -EINVAL;
        memcpy(copy, text.ptr, text.len);
        copy[text.len] = 0;
        if (inet_pton(AF_INET, copy, &a) != 1)
                return -EINVAL;
        *ret_address = ntohl(a.s_addr);
        return 0;
}

int parse_address(
    struct slice out, const char *key, const char *mask_key, struct npu_address *ret_address, struct slice *ret_text) {
        struct slice mask;
        struct npu_address a = {.known = true};

        *ret_text = SLICE_LIT("");
        if (parse_value(out, key, ret_text) < 0 || parse_ipv4(*ret_text, &a.address) < 0 || a.address == 0)
                return -EINVAL;
        memcpy(a.text, ret_text->ptr, ret_text->len);
        if (parse_value(out, mask_key, &mask) < 0 || parse_ipv4(mask, &a.mask) < 0)
                a.mask = 0;
        *ret_address = a;
        return 0;
}

int parse_conf(struct slice conf, const char *key, struct slice *ret_value) {
        struct slice line, name;

        while (next_line(&conf, &line)) {
                if (!slice_split(&line, '=', &name) || !slice_is(slice_trim(name), key) || !line.ptr)
                        continue;
                *ret_value = slice_trim(line);
                return 0;
        }
        return -EINVAL;
}

/* ---- npu-smi -------------------------------------------------------------------------------------------------------- */

static bool next_field(struct slice *line, struct slice *ret_field) {
        size_t from = 0, to;

        while (from < line->len && (line->ptr[from] == ' ' || line->ptr[from] == '\t'))
                from++;
        for (to = from; to < line->len && line->ptr[to] != ' ' && line->ptr[to] != '\t';)
                to++;
        *ret_field = slice_sub(*line, from, to);
        *line = slice_sub(*line, to, line->len);
        return ret_field->len > 0;
}

static bool small_number(struct slice text, uint32_t *ret_value) {
        uint64_t n;

        if (slice_to_u64(text, &n) < 0 || n >= 1024)
                return false;
        *ret_value = (uint32_t)n;
        return true;
}

static bool map_row(struct slice line, bool has_device, struct map_row *ret_row) {
        struct slice f[4] = {{0}};
        size_t need = has_device ? 4 : 3;

        for (size_t i = 0; i < need; i++)
                if (!next_field(&line, &f[i]))
                        return false;
        return small_number(f[0], &ret_row->card) && small_number(f[1], &ret_row->chip) &&
               small_number(f[2], &ret_row->logic) && small_number(f[has_device ? 3 : 2], &ret_row->device);
}

int parse_map(struct slice out, struct map_row rows[MAP_ROWS_MAX], size_t *ret_count) {
        struct slice line;
        bool header = false, has_device = false;
        size_t n = 0;

        while (next_line(&out, &line)) {
                struct map_row row;

                if (slice_starts(line, SLICE_LIT("NPU ID")) && holds(line, "Chip Logic ID")) {
                        header = true;
                        has_device = holds(line, "Phy-ID");
                        continue;
                }
                if (!header || !map_row(line, has_device, &row))
                        continue;
                if (n == MAP_ROWS_MAX)
                        return -EINVAL;
                for (size_t i = 0; i < n; i++)
                        if (rows[i].device == row.device)
                                return -EINVAL;
                rows[n++] = row;
        }
        if (!n)
                return -EINVAL;
        *ret_count = n;
        return 0;
}

/* The cells between the bars of one line; at most `max`. */
static size_t cells(struct slice line, struct slice *ret_cells, size_t max) {
        struct slice cell;
        size_t n = 0;

        if (line.len < 2 || line.ptr[0] != '|')
                return 0;
        line = slice_sub(line, 1, line.len);
        while (n < max && slice_split(&line, '|', &cell) && line.ptr)
                ret_cells[n++] = slice_trim(cell);
        return n;
}

/* "0           0    / 0          57421/ 65536": the last pair. */
static bool hbm_pair(struct slice cell, uint64_t *ret_used, uint64_t *ret_all) {
        size_t slash = cell.len;
        struct slice before, used = {0}, field;

        while (slash > 0 && cell.ptr[slash - 1] != '/')
                slash--;
        if (!slash)
                return false;
        before = slice_sub(cell, 0, slash - 1);
        while (next_field(&before, &field))
                used = field;
        return slice_to_u64(used, ret_used) == 0 &&
               slice_to_u64(slice_trim(slice_sub(cell, slash, cell.len)), ret_all) == 0;
}

bool parse_table(struct table_reader *reader, struct table_row *ret_row) {
        struct slice line, c[6], first, second;

        while (next_line(&reader->rest, &line)) {
                size_t n = cells(line, c, 6);
                struct slice ids;
                struct table_row row = {0};

                if (n < 3)
                        continue;
                ids = c[0];
                if (!next_field(&ids, &first) || !small_number(first, &row.chip))
                        continue;
                if (n == 4 && next_field(&ids, &second) && small_number(second, &row.chip)) {
                        uint64_t pid;

                        row.kind = TABLE_PROCESS;
                        if (!small_number(first, &row.card) || slice_to_u64(c[1], &pid) < 0)
                                continue;
                        row.pid = c[1];
                        row.name = c[2];
                        *ret_row = row;
                        return true;
                }
                if (n != 3)
                        continue;
                /* Two lines a chip: "CARD NAME | health |", then "CHIP [PHY] | bus | … HBM |". */
                if (slice_find(c[1], ':', 0) == c[1].len) {
                        reader->card_known = small_number(first, &reader->card);
                        continue;
                }
                row.card = reader->card;
                if (!reader->card_known || !hbm_pair(c[2], &row.hbm_used_mb, &row.hbm_all_mb))
                        continue;
                *ret_row = row;
                return true;
        }
        return false;
}

/* ---- hccn_tool ------------------------------------------------------------------------------------------------------ */

int parse_lldp(struct slice out, struct lldp *ret_lldp) {
        struct slice line;
        struct lldp l = {0};
        bool in_port = false, in_system = false;

        while (next_line(&out, &line)) {
                struct slice value;

                if (slice_ends(line, SLICE_LIT(" TLV"))) {
                        in_port = slice_is(line, "Port ID TLV");
                        in_system = slice_is(line, "System Name TLV");
                } else if (in_port && !l.port.len && value_of(line, SLICE_LIT("Ifname"), &value))
                        l.port = value;
                else if (in_system && !l.system.len)
                        l.system = line;
        }
        if (!l.port.len)
                return -EINVAL;
        *ret_lldp = l;
        return 0;
}

int parse_tls(struct slice out, unsigned *ret_switch) {
        static const struct slice before = {"switch[", 7};
        size_t at = slice_find_slice(out, before, 0);
        struct slice digit = slice_sub(out, at + before.len, at + before.len + 2);

        if (slice_is(digit, "0]"))
                *ret_switch = 0;
        else if (slice_is(digit, "1]"))
                *ret_switch = 1;
        else
                return -EINVAL;
        return 0;
}

/* "3 packets transmitted, 2 received, 33.33% packet loss" (hccs_ping: "packets loss"). */
static bool ping_summary(struct slice line, struct ping *p) {
        struct slice f[8];

        for (size_t i = 0; i < 8; i++)
                if (!next_field(&line, &f[i]))
                        return false;
        if (!slice_is(f[1], "packets") || !slice_is(f[2], "transmitted,") || !slice_is(f[4], "received,") ||
            !slice_is(f[7], "loss") || !slice_ends(f[5], SLICE_LIT("%")))
                return false;
        p->loss = f[5];
        return slice_to_u64(f[0], &p->sent) == 0 && slice_to_u64(f[3], &p->received) == 0;
}

/* The number behind "time = " or "time=" in µs; its unit is us or ms. */
static bool packet_time(struct slice line, double *ret_us) {
        size_t at = slice_find_slice(line, SLICE_LIT("time"), 0), to;
        struct slice rest = slice_trim(slice_sub(line, at + 4, line.len));

        if (!slice_starts(line, SLICE_LIT("recv seq")) || !slice_starts(rest, SLICE_LIT("=")))
                return false;
        rest = slice_trim(slice_sub(rest, 1, rest.len));
        for (to = 0; to < rest.len && (rest.ptr[to] == '.' || (rest.ptr[to] >= '0' && rest.ptr[to] <= '9'));)
                to++;
        if (slice_to_double(slice_sub(rest, 0, to), ret_us) < 0)
                return false;
        if (slice_starts(slice_sub(rest, to, rest.len), SLICE_LIT("ms")))
                *ret_us *= 1000;
        return true;
}

int parse_ping(struct slice out, struct ping *ret_ping) {
        static const struct slice plane = {"plane check result = ", 21};
        struct slice line;
        struct ping p = {0};
        double sum = 0, us;
        size_t times = 0;
        bool summary = false;

        while (next_line(&out, &line)) {
                size_t at = slice_find_slice(line, plane, 0);

                if (at < line.len && !p.plane.len) {
                        struct slice result = slice_trim(slice_sub(line, at + plane.len, line.len));

                        if (!slice_is(result, "0x0"))
                                p.plane = result;
                }
                if (packet_time(line, &us) && us > 0) {
                        sum += us;
                        times++;
                }
                summary |= ping_summary(line, &p);
        }
        if (!summary || p.sent == 0)
                return -EINVAL;
        p.average_us = times ? sum / (double)times : 0;
        *ret_ping = p;
        return 0;
}

/* "Tue Oct 28 21:46:46 2025" at the front of `text`. */
static bool parse_time(struct slice text, time_t *ret_time, struct slice *ret_rest) {
        char copy[25];
        struct tm tm = {0};
        const char *end;

        if (text.len < 24)
                return false;
        memcpy(copy, text.ptr, 24);
        copy[24] = 0;
        end = strptime(copy, "%a %b %d %H:%M:%S %Y", &tm);
        if (!end || *end)
                return false;
        *ret_time = timegm(&tm);
        *ret_rest = slice_trim(slice_sub(text, 24, text.len));
        return true;
}

int parse_link_stat(struct slice out, unsigned hours, unsigned *ret_downs) {
        struct slice value, line, rest;
        time_t now, at;
        unsigned downs = 0;

        if (parse_value(out, "current time", &value) < 0 || !parse_time(value, &now, &rest))
                return -EINVAL;
        while (next_line(&out, &line)) {
                line = without_device(line);
                if (parse_time(line, &at, &rest) && slice_is(rest, "LINK DOWN") && at <= now &&
                    now - at <= (time_t)hours * 3600)
                        downs++;
        }
        *ret_downs = downs;
        return 0;
}

bool parse_counter(struct slice *out, struct slice *ret_name, uint64_t *ret_value) {
        struct slice line, name;

        while (next_line(out, &line))
                if (slice_split(&line, ':', &name) && slice_to_u64(slice_trim(line), ret_value) == 0) {
                        *ret_name = slice_trim(name);
                        return true;
                }
        return false;
}

int parse_ports(struct slice out, size_t *ret_count, struct slice *ret_down) {
        struct slice line, c[8], down = {0};
        size_t count = 0;
        uint32_t id;

        while (next_line(&out, &line))
                if (cells(line, c, 8) >= 6 && small_number(c[0], &id)) {
                        count++;
                        if (!slice_is(c[4], "UP") && !down.len)
                                down = line;
                }
        if (!count)
                return -EINVAL;
        *ret_count = count;
        *ret_down = down;
        return 0;
}

bool table_tells_none(struct slice out, uint32_t card) {
        static const struct slice words = {"No running processes found in NPU ", 34};
        struct slice line;

        while (next_line(&out, &line)) {
                size_t at = slice_find_slice(line, words, 0);
                struct slice rest = slice_sub(line, at + words.len, line.len), number;
                uint64_t value;

                if (at < line.len && slice_split(&rest, ' ', &number) && slice_to_u64(number, &value) == 0 &&
                    value == card)
                        return true;
        }
        return false;
}
