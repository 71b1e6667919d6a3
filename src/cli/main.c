/* main.c - the baton command: finds the subcommand and hands over. */
#include <stdio.h>

int main(void) {
        printf("baton %s\n", BATON_VERSION);
        return 0;
}
