/* What a parser of this layer says. A parser never reads beyond the length it was given, and
 * fills its representation only if it returns IX_PARSE_OK. */
#ifndef IX_WIRE_PARSE_H
#define IX_WIRE_PARSE_H

enum ix_parse {
    IX_PARSE_OK = 0,
    IX_PARSE_SHORT,   /* fewer bytes than the header says or needs */
    IX_PARSE_VERSION, /* another protocol version or hardware type */
    IX_PARSE_HEADER,  /* a length field or option that can't be */
    IX_PARSE_CSUM,    /* the checksum is wrong */
};

#endif
