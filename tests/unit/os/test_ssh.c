/* test_ssh.c - what ssh says, told apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "os/os.h"

static void each_trouble_has_its_kind(void **state) {
        static const struct {
                const char *said, *kind;
        } cases[] = {
            {"", "ssh"},
            {"something new\r\n", "ssh"},
            {"root@d1: Permission denied (publickey).\r\n", "auth"},
            {"Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures\r\n", "auth"},
            {"@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nIT IS POSSIBLE THAT ...\n"
             "Host key verification failed.\r\n",
                "host-key"},
            {"No ED25519 host key is known for d1 and you have requested strict checking.\r\nHost key verification "
             "failed.\r\n",
                "host-key"},
            {"ssh: connect to host d1 port 22: Connection refused\r\n", "refused"},
            {"ssh: connect to host d1 port 22: Connection timed out\r\n", "timeout"},
            {"Connection timed out during banner exchange\r\n", "timeout"},
            {"ssh: connect to host d1 port 22: No route to host\r\n", "route"},
            {"ssh: Could not resolve hostname d1: Name or service not known\r\n", "name"},
            {"kex_exchange_identification: read: Connection reset by peer\r\nConnection reset by 10.0.0.1 port 22\r\n",
                "closed"},
            {"/root/.ssh/config: line 3: Bad configuration option: prot\r\n", "config"},
        };

        (void)state;
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                const struct os_ssh_trouble *t = os_ssh_trouble(slice_str(cases[i].said));

                assert_string_equal(t->kind, cases[i].kind);
                assert_non_null(t->cause);
                assert_non_null(t->cure);
        }
}

static void a_word_for_a_shell_is_plain(void **state) {
        static const char *const good[] = {"baton", "/opt/baton-0.1/bin/baton", "./x_y"};
        static const char *const bad[] = {
            "", "a b", "$(x)", "`x`", "a;b", "~/x", "-oProxyCommand", "a\nb", "'a'", "\xc3\xbc"};

        (void)state;
        for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
                assert_true(os_ssh_plain_word(good[i]));
        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
                assert_false(os_ssh_plain_word(bad[i]));
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(each_trouble_has_its_kind),
            cmocka_unit_test(a_word_for_a_shell_is_plain),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
