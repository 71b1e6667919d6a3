/* test_parse.c - what the tools print, form by form: what counts as success, and that nothing else does. */
#include "verify/parse.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static enum trouble trouble_of(const char *out, const char *err, int status) {
        struct answer a = {.status = status, .out = slice_str(out), .err = slice_str(err)};
        struct slice said;

        return answer_trouble(&a, &said);
}

static void errors_are_known_by_text_whatever_the_status(void **state) {
        assert_int_equal(trouble_of("hccn_tool is busy, please try again.\n", "", 0), TROUBLE_BUSY);
        assert_int_equal(trouble_of("", "The device is occupied. Please try again later.\n", 31), TROUBLE_BUSY);
        assert_int_equal(
            trouble_of("", "permission denied: pls check this cmd run permission.\n", 12), TROUBLE_PERMISSION);
        assert_int_equal(trouble_of("I2c is busy. Please try again.\n", "", 12), TROUBLE_BUSY);
        assert_int_equal(trouble_of("The command is not supported on this product.\n", "", 0), TROUBLE_UNSUPPORTED);
        assert_int_equal(
            trouble_of("", "Get ipconf failed, because no ip was preset there!\n", 13), TROUBLE_NOT_PRESET);
        assert_int_equal(trouble_of("", "Get device health status failed!\n", 3), TROUBLE_HEALTH);
        assert_int_equal(trouble_of("", "something new\n", 7), TROUBLE_FAILED);
        assert_int_equal(trouble_of(" \n\r\n", "", 0), TROUBLE_EMPTY);
        assert_int_equal(trouble_of("link status: UP\n", "[WARN] log directory is not writable\n", 0), TROUBLE_NONE);
}

static void a_killed_tool_has_not_answered(void **state) {
        assert_int_equal(trouble_of("link status: UP\n", "", 128 + 11), TROUBLE_FAILED);
}

static void values_stand_behind_their_whole_key(void **state) {
        struct slice v;

        assert_int_equal(parse_value(slice_str("\r\n  link status :  UP \r\n"), "link status", &v), 0);
        assert_true(slice_is(v, "UP"));
        assert_int_equal(parse_value(slice_str("vnic link status: UP\n"), "link status", &v), -22);
        assert_int_equal(parse_value(slice_str("link status UP\n"), "link status", &v), -22);
        assert_int_equal(parse_value(slice_str("[devid 3]link up count       : 1\n"), "link up count", &v), 0);
        assert_true(slice_is(v, "1"));
}

static void an_address_is_a_whole_ipv4_that_is_not_zero(void **state) {
        static const char *const bad[] = {"ipaddr:0.0.0.0\n", "ipaddr:fd00::1\n", "ipaddr:11.12.165\n", "ipaddr:\n",
            "ipaddr:11.12.165.80.1\n", "ipaddr:11.12.165.080x\n", "", "ip:1.2.3.4\n"};
        struct npu_address a = {0};
        struct slice text;

        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
                assert_int_equal(parse_address(slice_str(bad[i]), "ipaddr", "netmask", &a, &text), -22);
        assert_false(a.known);
        assert_int_equal(
            parse_address(slice_str("ipaddr:11.12.165.80\nnetmask:255.255.0.0\n"), "ipaddr", "netmask", &a, &text), 0);
        assert_int_equal(a.address, 0x0b0ca550);
        assert_int_equal(a.mask, 0xffff0000);
        assert_string_equal(a.text, "11.12.165.80");
}

static void a_map_without_physical_ids_takes_the_logic_ones(void **state) {
        struct map_row rows[MAP_ROWS_MAX];
        size_t n;

        assert_int_equal(parse_map(slice_str("\tNPU ID  Chip ID  Chip Logic ID  Chip Name\n\t1 0 0 Ascend 910B3\n"
                                             "\t1 1 - Mcu\n\t2 0 1 Ascend 910B3\n"),
                             rows, &n),
            0);
        assert_int_equal(n, 2);
        assert_int_equal(rows[1].card, 2);
        assert_int_equal(rows[1].device, 1);
        assert_int_equal(parse_map(slice_str("0 0 0 0 Ascend910\n"), rows, &n), -22); /* no header */
        assert_int_equal(
            parse_map(
                slice_str("NPU ID Chip ID Chip Logic ID Chip Phy-ID Chip Name\n0 0 0 5 A\n1 0 1 5 A\n"), rows, &n),
            -22); /* an id twice */
}

static const char lossy[] =
    "device 0 PING 192.168.4.199\n\nThis pkt ping success!\nrecv seq 0, time = 12.345us, L1 plane "
    "check result = 0x0\n\nThis pkt check recv msg fail!\nrecv seq 1, time = 0.000us, L1 plane "
    "check result = 0x0\n\n3 packets transmitted, 2 received, 33.33% packets loss\n"
    "max time 12.345us\n";

static void both_forms_of_ping_are_read(void **state) {
        struct ping p;

        assert_int_equal(parse_ping(slice_str(lossy), &p), 0);
        assert_int_equal(p.sent, 3);
        assert_int_equal(p.received, 2);
        assert_true(slice_is(p.loss, "33.33%"));
        assert_int_equal(p.plane.len, 0);
        assert_true(p.average_us > 12.3 && p.average_us < 12.4);
        assert_int_equal(parse_ping(slice_str("device 0 PING 11.12.165.80\nrecv seq=0,time=0.114000ms\n"
                                              "1 packets transmitted, 1 received, 0.00% packet loss\n"),
                             &p),
            0);
        assert_true(p.average_us > 113.9 && p.average_us < 114.1);
}

static void no_front_part_of_a_lossy_ping_is_a_good_one(void **state) {
        for (size_t n = 0; n < sizeof(lossy); n++) {
                struct ping p;

                if (parse_ping(slice_of(lossy, n), &p) == 0)
                        assert_true(p.received < p.sent);
        }
}

static void flaps_count_by_the_clock_of_the_device(void **state) {
        static const char text[] = "[devid 4]current time        : Tue Oct 28 21:46:46 2025\n"
                                   "[devid 4]link down count     : 3\n[devid 4]link change records :\n"
                                   "[devid 4]    Tue Oct 28 21:34:05 2025    LINK DOWN\n"
                                   "[devid 4]    Tue Oct 28 20:19:41 2025    LINK UP\n"
                                   "[devid 4]    Mon Oct 27 21:46:47 2025    LINK DOWN\n"
                                   "[devid 4]    Mon Oct 27 21:46:45 2025    LINK DOWN\n";
        unsigned downs;

        assert_int_equal(parse_link_stat(slice_str(text), 24, &downs), 0);
        assert_int_equal(downs, 2);
        assert_int_equal(parse_link_stat(slice_str(text), 1, &downs), 0);
        assert_int_equal(downs, 1);
        assert_int_equal(parse_link_stat(SLICE_LIT("link change records : NA\n"), 24, &downs), -22);
}

static void conf_keys_are_whole_words(void **state) {
        struct slice v;

        assert_int_equal(parse_conf(slice_str("address_10=1.1.1.1\n address_1 = 2.2.2.2 \n"), "address_1", &v), 0);
        assert_true(slice_is(v, "2.2.2.2"));
        assert_int_equal(parse_conf(slice_str("address_1\n"), "address_1", &v), -22);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(errors_are_known_by_text_whatever_the_status),
            cmocka_unit_test(a_killed_tool_has_not_answered),
            cmocka_unit_test(values_stand_behind_their_whole_key),
            cmocka_unit_test(an_address_is_a_whole_ipv4_that_is_not_zero),
            cmocka_unit_test(a_map_without_physical_ids_takes_the_logic_ones),
            cmocka_unit_test(both_forms_of_ping_are_read),
            cmocka_unit_test(no_front_part_of_a_lossy_ping_is_a_good_one),
            cmocka_unit_test(flaps_count_by_the_clock_of_the_device),
            cmocka_unit_test(conf_keys_are_whole_words),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
