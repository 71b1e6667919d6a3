/* ssh.c - what every use of ssh(1) has in common: its options, and its error texts told apart.
 *
 * The texts are those of OpenSSH's client (ssh.c, sshconnect.c, sshconnect2.c, kex.c, packet.c), whose wording of these has
 * not changed since 7.0; those in the system's words are strerror's in the C locale. */
#include "os/os.h"
#include <assert.h>

static const char *const options[] = {"-T", "-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=5",
    "-oServerAliveCountMax=3", "-oLogLevel=ERROR", "-oClearAllForwardings=yes", "-oRemoteCommand=none", NULL};

static size_t append(const char *argv[OS_SSH_ARGV_MAX], size_t n, const char *const *words) {
        while (*words) {
                assert(n + 1 < OS_SSH_ARGV_MAX);
                argv[n++] = *words++;
        }
        return n;
}

void os_ssh_argv(
    const char *argv[OS_SSH_ARGV_MAX], const char *const *more, const char *destination, const char *const *command) {
        const char *const first[] = {"ssh", NULL}, *const to[] = {"--", destination, NULL};
        size_t n = append(argv, 0, first);

        n = append(argv, n, options);
        n = append(argv, n, more);
        n = append(argv, n, to);
        argv[append(argv, n, command)] = NULL;
}

/* The first row whose text occurs tells: those that say more stand before those that come with them. */
static const struct os_ssh_trouble troubles[] = {
    {"host-key", "REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is another one than known_hosts has",
        "ask whoever runs it whether the machine was set up anew; if so: ssh-keygen -R HOST, then `ssh %s` once"},
    {"host-key", "Host key verification failed", "its host key is not in known_hosts",
        "`ssh %s` once by hand and compare the fingerprint, or add the keys of all nodes to known_hosts"},
    {"host-key", "host key is known", "its host key is not in known_hosts",
        "`ssh %s` once by hand and compare the fingerprint, or add the keys of all nodes to known_hosts"},
    {"auth", "Too many authentication failures", "it refuses after too many keys were offered",
        "name the key in ssh_config: IdentityFile, and IdentitiesOnly yes"},
    {"auth", "Permission denied (", "it takes none of the keys that ssh offers",
        "`ssh -oBatchMode=yes %s true` must work without a question: ssh-copy-id, or a key in the agent"},
    {"name", "Could not resolve hostname", "no such host name is known here",
        "give the node's `ssh` in the cluster file, or a Host in ssh_config"},
    {"refused", "Connection refused", "nobody listens on its ssh port",
        "is sshd running there, and on this port (ssh_config: Port)?"},
    {"timeout", "timed out", "it does not answer within 10 s",
        "is the machine up, its address right, and the way free (firewall)?"},
    {"timeout", "not responding", "it stopped answering", "is the machine up, and the way to it?"},
    {"route", "No route to host", "no way leads there", "is the machine up, and its address right?"},
    {"route", "Network is unreachable", "no way leads there", "is this machine in the nodes' network?"},
    {"closed", "Connection closed by", "it closed the connection before anybody had logged in",
        "its sshd says why in its log (MaxStartups, AllowUsers, a full disk?)"},
    {"closed", "Connection reset by", "it closed the connection before anybody had logged in",
        "its sshd says why in its log (MaxStartups, AllowUsers, a full disk?)"},
    {"config", "Bad configuration option", "ssh does not read its configuration",
        "the file and line that it names, above"},
    {"config", "Bad owner or permissions", "ssh does not read its configuration",
        "chmod 600 the file that it names, above"},
    {"ssh", NULL, "ssh did not get through", "try `ssh -v %s true`"},
};

const struct os_ssh_trouble *os_ssh_trouble(struct slice said) {
        const struct os_ssh_trouble *t = troubles;

        while (t->text && slice_find_slice(said, slice_str(t->text), 0) == said.len)
                t++;
        return t;
}

bool os_ssh_plain_word(const char *word) {
        static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-";

        return *word && *word != '-' && word[strspn(word, plain)] == 0;
}
