/* test_remote.c - nodes asked all at once, with stand-ins for ssh and baton: what is answered, lost, late, interrupted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "launch/remote.h"
#include "os/os.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/baton-test-remote-XXXXXX";
static char baton[64];

static int make_dir(void **state) {
        (void)state;
        if (!mkdtemp(dir))
                return -1;
        snprintf(baton, sizeof(baton), "%s/baton", dir);
        return setenv("PATH", dir, 1);
}

static int drop_dir(void **state) {
        char command[128];

        (void)state;
        snprintf(command, sizeof(command), "/bin/rm -rf %s", dir);
        return system(command);
}

static void script(const char *name, const char *text) {
        char path[100];
        struct buf b = {0};

        snprintf(path, sizeof(path), "%s/%s", dir, name);
        buf_printf(&b, "#!/bin/sh\nPATH=%s:/usr/bin:/bin\n%s\n", dir, text);
        assert_int_equal(os_write_file_atomic(path, buf_slice(&b), 0700, NULL), 0);
        buf_free(&b);
}

/* ssh as its user sees it: a master makes its socket and stays; a session runs its command here. */
#define SSH                                                                                                            \
        "for last; do case $last in -oControlMaster=yes) master=1;; esac; done\n"                                      \
        "while [ \"$1\" != -S ]; do shift; done; socket=$2; shift 3; host=$1; shift\n"                                 \
        "case $host in gone) echo \"ssh: connect to host gone port 22: Connection refused\" >&2; exit 255;; esac\n"    \
        "if [ \"$master\" ]; then : >$socket; exec sleep 600; fi\n"                                                    \
        "exec \"$@\"\n"
/* Answers each line with its id and what it was called with. */
#define ECHO                                                                                                           \
        "echo '{\"baton\":\"" BATON_VERSION "\"}'\n"                                                                   \
        "while read -r line; do id=${line#*:}; id=${id%%,*}; echo \"{\\\"id\\\":$id,\\\"me\\\":$$}\"; done\n"

static struct remote *open_nodes(const struct remote_target *targets, size_t count, struct remote_options *options) {
        struct remote *r;

        *options = (struct remote_options){baton, "baton", targets, count};
        assert_int_equal(remote_new(options, &r, NULL), 0);
        return r;
}

static struct remote_call call(size_t node) {
        return (struct remote_call){.node = node, .request = SLICE_LIT("{\"op\":\"x\"}")};
}

static bool says(const struct remote_call *c, const char *text) {
        return slice_find_slice(buf_slice(&c->answer), slice_str(text), 0) < c->answer.len;
}

static void all_answer_and_keep_their_connection(void **state) {
        const struct remote_target targets[] = {{"a", NULL}, {"b", "there"}, {"c", "there"}};
        struct remote_options o;
        struct remote *r;
        struct buf first[3] = {0};
        struct slice me;
        size_t at;

        (void)state;
        script("ssh", SSH);
        script("baton", ECHO);
        r = open_nodes(targets, 3, &o);
        for (int round = 0; round < 3; round++) {
                struct remote_call calls[] = {call(0), call(1), call(2)};

                assert_int_equal(remote_ask(r, calls, 3, 20000, -1), 0);
                for (size_t i = 0; i < 3; i++) {
                        assert_null(remote_trouble(r, i));
                        assert_true(says(&calls[i], "\"me\":"));
                        at = slice_find(buf_slice(&calls[i].answer), ',', 0);
                        me = slice_sub(buf_slice(&calls[i].answer), at, SIZE_MAX);
                        if (round == 0)
                                buf_add(&first[i], me);
                        assert_true(slice_eq(me, buf_slice(&first[i])));
                        buf_free(&calls[i].answer);
                }
        }
        for (size_t i = 0; i < 3; i++)
                buf_free(&first[i]);
        remote_free(r);
}

static void one_that_is_lost_leaves_the_others(void **state) {
        const struct remote_target targets[] = {{"a", "gone"}, {"b", "there"}, {"c", "gone"}};
        struct remote_call calls[] = {call(0), call(1), call(2)};
        struct remote_options o;
        struct remote *r;
        struct buf text = {0};

        (void)state;
        script("ssh", SSH);
        script("baton", ECHO);
        r = open_nodes(targets, 3, &o);
        assert_int_equal(remote_ask(r, calls, 3, 20000, -1), 0);
        assert_int_equal(calls[0].answer.len + calls[2].answer.len, 0);
        assert_true(says(&calls[1], "\"me\":"));
        assert_string_equal(remote_trouble(r, 0)->kind, "refused");
        assert_string_equal(remote_trouble(r, 2)->kind, "refused"); /* by the master of the first */
        remote_write_trouble(r, 0, &text);
        assert_true(
            slice_starts(buf_slice(&text), SLICE_LIT("a: ssh gone: nobody listens on its ssh port (ssh: connect")));
        buf_free(&text);
        buf_free(&calls[1].answer);
        /* Lost it stays, and costs no time. */
        calls[0] = call(0);
        assert_int_equal(remote_ask(r, calls, 1, 20000, -1), 0);
        assert_int_equal(calls[0].answer.len, 0);
        remote_free(r);
}

/* What a node's baton does, and the kind of trouble that is. */
static void what_is_not_this_baton_is_told_apart(void **state) {
        static const struct {
                const char *script, *kind, *cause;
        } cases[] = {
            {"echo 'sh: baton: not found' >&2; exit 127", "missing", "cannot be started there (sh: baton: not found)"},
            {"exit 126", "missing", "cannot be started"},
            {"echo '{\"baton\":\"0.0.1\"}'; read line", "version", "is version 0.0.1"},
            {"echo oops >&2; exit 3", "node", "exit status 3): oops"},
            {"echo '{\"baton\":\"" BATON_VERSION "\"}'; read line; echo nonsense; read line", "node", "not baton's"},
            {"echo '{\"baton\":\"" BATON_VERSION "\"}'; read line; kill -9 $$", "node", "killed by SIGKILL"},
            {"echo '{\"baton\":\"" BATON_VERSION "\"}'; read line; exit 255", "closed", "the connection broke"},
            {"while :; do echo welcome; done", "node", "more than baton would"},
        };
        const struct remote_target target = {"a", "there"};

        (void)state;
        script("ssh", SSH);
        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                struct remote_call c = call(0);
                struct remote_options o;
                struct remote *r;

                script("baton", cases[i].script);
                r = open_nodes(&target, 1, &o);
                assert_int_equal(remote_ask(r, &c, 1, 20000, -1), 0);
                assert_int_equal(c.answer.len, 0);
                assert_non_null(remote_trouble(r, 0));
                assert_string_equal(remote_trouble(r, 0)->kind, cases[i].kind);
                assert_non_null(strstr(remote_trouble(r, 0)->cause, cases[i].cause));
                remote_free(r);
        }
}

static void a_greeting_before_it_is_passed_over(void **state) {
        const struct remote_target target = {"a", "there"};
        struct remote_call c = call(0);
        struct remote_options o;
        struct remote *r;

        (void)state;
        script("ssh", SSH);
        script("baton", "echo; echo '{a greeting}'; echo '{\"x\":1}'\n" ECHO);
        r = open_nodes(&target, 1, &o);
        assert_int_equal(remote_ask(r, &c, 1, 20000, -1), 0);
        assert_true(says(&c, "\"me\":"));
        buf_free(&c.answer);
        remote_free(r);
}

/* An answer that comes when nobody waits for it any more is not taken for that of the next request. */
static void who_is_interrupted_does_not_get_an_old_answer(void **state) {
        const struct remote_target target = {"a", NULL};
        struct remote_call c = call(0);
        struct remote_options o;
        struct remote *r;
        int pipes[2];
        char text[400];

        (void)state;
        /* The first answer is held back until a file is there. */
        snprintf(text, sizeof(text),
            "echo '{\"baton\":\"" BATON_VERSION "\"}'\nread -r line; while [ ! -e %s/go ]; do sleep 0.01; done\n"
            "echo '{\"id\":1,\"n\":\"first\"}'\nread -r line; echo '{\"id\":2,\"n\":\"second\"}'\nread line\n",
            dir);
        script("baton", text);
        r = open_nodes(&target, 1, &o);
        assert_int_equal(pipe(pipes), 0);
        assert_int_equal(write(pipes[1], "x", 1), 1);
        assert_int_equal(remote_ask(r, &c, 1, 20000, pipes[0]), -EINTR);
        assert_int_equal(c.answer.len, 0);
        assert_int_equal(remote_ask(r, &c, 1, 1, -1), -ETIMEDOUT);
        script("go", "");
        assert_int_equal(remote_ask(r, &c, 1, 20000, -1), 0);
        assert_false(says(&c, "first"));
        buf_free(&c.answer);
        remote_free(r);
        close(pipes[0]);
        close(pipes[1]);
}

int main(void) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(all_answer_and_keep_their_connection),
            cmocka_unit_test(one_that_is_lost_leaves_the_others),
            cmocka_unit_test(what_is_not_this_baton_is_told_apart),
            cmocka_unit_test(a_greeting_before_it_is_passed_over),
            cmocka_unit_test(who_is_interrupted_does_not_get_an_old_answer),
        };

        return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
