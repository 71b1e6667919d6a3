/* list.h - a doubly linked list through members of the items (intrusive). A head is a link that points to itself. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct list {
        struct list *prev, *next;
};

#define list_item(link, type, member) ((type *)((char *)(link)-offsetof(type, member)))
/* `at` may be removed inside the loop. */
#define list_for_each(at, head)                                                                                        \
        for (struct list *at = (head)->next, *at##_next = at->next; at != (head); at = at##_next, at##_next = at->next)

static inline void list_init(struct list *l) {
        l->prev = l->next = l;
}
static inline bool list_empty(const struct list *head) {
        return head->next == head;
}
static inline void list_insert_between(struct list *prev, struct list *item, struct list *next) {
        item->prev = prev;
        item->next = next;
        prev->next = item;
        next->prev = item;
}
static inline void list_push_back(struct list *head, struct list *item) {
        list_insert_between(head->prev, item, head);
}
static inline void list_push_front(struct list *head, struct list *item) {
        list_insert_between(head, item, head->next);
}
/* Safe on an item that is in no list (initialised or removed). */
static inline void list_remove(struct list *item) {
        item->prev->next = item->next;
        item->next->prev = item->prev;
        list_init(item);
}
static inline struct list *list_pop_front(struct list *head) { /* NULL when empty */
        struct list *first = head->next;

        if (first == head)
                return NULL;
        list_remove(first);
        return first;
}
