package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strconv"
)

// A file that is damaged must be known before bbolt sees it: bbolt takes numbers
// in it for addresses in memory, and a wrong one ends the process, from which no
// recover saves it; a circle of pages does so too. So this file reads bbolt's
// format itself, version 2, which has not changed since 2014: the pages that the
// newest transaction reaches, each once, and all keys and values in them.
//
// All numbers are in the byte order of the host:
//
//	page     id uint64, kind uint16, count uint16, overflow uint32
//	meta     magic, version, page size, flags uint32; root, sequence, freelist,
//	         pages, transaction, checksum uint64
//	branch   count × (offset, key size uint32; child uint64)
//	leaf     count × (flags, offset, key size, value size uint32)
//	bucket   root, sequence uint64; a root of 0: a leaf page follows
//
// Behind its elements a page has their keys and values, in their order and without
// gaps; an offset counts from the element that holds it. So one that was lost is
// missed. A page goes on in the overflow pages behind it.

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader   = 16
	elementSize  = 16
	bucketHeader = 16

	branchKind   = 0x01
	leafKind     = 0x02
	freelistKind = 0x10

	minPage = 1 << 10 // of all machines
	maxPage = 1 << 16

	noFreelist = ^uint64(0)

	// newTransaction is the number that bbolt begins with. A daemon that is
	// killed in that moment leaves a file without anything in it.
	newTransaction = 1

	// maxDepth is more than a tree of 2^64 pages could have.
	maxDepth = 64
)

// A damage says what is wrong with a file.
type damage string

func (d damage) Error() string { return string(d) }

func damaged(format string, args ...any) error { return damage(fmt.Sprintf(format, args...)) }

var order = binary.NativeEndian

// verify reads all of a file and returns a damage, ErrNewer, or an error of
// reading. An empty file is a new one.
func verify(f *os.File) error {
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("no regular file")
	case info.Size() == 0:
		return nil
	}
	return verifyBolt(f, info.Size())
}

func verifyBolt(r io.ReaderAt, size int64) error {
	m, err := newestMeta(r, size)
	if err != nil {
		return err
	}
	v := &verifier{file: r, meta: m, used: make([]bool, m.pages)}
	if err := v.freelist(); err != nil {
		return err
	}
	if err := v.tree(m.root, visit{value: v.bucket}); err != nil {
		return err
	}
	return v.outcome()
}

// A meta is what one of the first two pages says.
type meta struct {
	pageSize                           int64
	root, freelist, pages, transaction uint64
}

// newestMeta returns the meta page that bbolt will go by. The other is that of
// the transaction before, to which a torn write falls back.
func newestMeta(r io.ReaderAt, size int64) (meta, error) {
	var newest meta
	for _, at := range metaPlaces(r) {
		m, ok := readMeta(r, at)
		switch {
		case !ok:
		case m.pageSize < minPage || m.pageSize > maxPage:
			return meta{}, damaged("pages of %d bytes", m.pageSize)
		case newest.pageSize == 0:
			newest = m
		case m.pageSize != newest.pageSize:
			return meta{}, damaged("first pages that disagree")
		case m.transaction > newest.transaction:
			newest = m
		}
	}
	switch {
	case newest.pageSize == 0:
		return meta{}, damaged("no valid first page")
	case newest.pages > uint64(size/newest.pageSize):
		return meta{}, damaged("cut short, %d of %d pages are left", size/newest.pageSize, newest.pages)
	}
	return newest, nil
}

// metaPlaces returns where the two are. The second is on the second page, and only
// a valid one tells how large pages are.
func metaPlaces(r io.ReaderAt) []int64 {
	if first, ok := readMeta(r, 0); ok {
		return []int64{0, first.pageSize}
	}
	var places []int64
	for size := int64(minPage); size <= maxPage; size <<= 1 {
		places = append(places, size)
	}
	return places
}

func readMeta(r io.ReaderAt, at int64) (meta, bool) {
	var page [pageHeader + 64]byte
	if _, err := r.ReadAt(page[:], at); err != nil {
		return meta{}, false
	}
	b := page[pageHeader:]
	hash := fnv.New64a()
	hash.Write(b[:56])
	m := meta{
		pageSize:    int64(order.Uint32(b[8:])),
		root:        order.Uint64(b[16:]),
		freelist:    order.Uint64(b[32:]),
		pages:       order.Uint64(b[40:]),
		transaction: order.Uint64(b[48:]),
	}
	valid := order.Uint32(b) == boltMagic && order.Uint32(b[4:]) == boltVersion &&
		order.Uint64(b[56:]) == hash.Sum64()
	return m, valid
}

// A verifier has seen part of a file.
type verifier struct {
	file io.ReaderAt
	meta meta
	used []bool // the pages that were seen, or are on the free list

	schema   int   // 0: not found
	badValue error // the first value whose checksum is wrong
}

// outcome judges what was found. The schema comes first: what a newer one holds
// we cannot judge.
func (v *verifier) outcome() error {
	switch {
	case v.schema > schema:
		return fmt.Errorf("schema %d: %w", v.schema, ErrNewer)
	case v.badValue != nil:
		return v.badValue
	case v.schema == 0 && v.meta.transaction > newTransaction:
		return damaged("no schema")
	}
	return nil
}

// page reads a page with its overflow, once.
func (v *verifier) page(id uint64) ([]byte, error) {
	if id < 2 || id >= v.meta.pages {
		return nil, damaged("page %d of %d", id, v.meta.pages)
	}
	var header [pageHeader]byte
	at := int64(id) * v.meta.pageSize
	if _, err := v.file.ReadAt(header[:], at); err != nil {
		return nil, err
	}
	overflow := uint64(order.Uint32(header[12:]))
	if order.Uint64(header[:]) != id || id+overflow >= v.meta.pages {
		return nil, damaged("page %d: wrong header", id)
	}
	for i := id; i <= id+overflow; i++ {
		if v.used[i] {
			return nil, damaged("page %d: in use twice", i)
		}
		v.used[i] = true
	}
	page := make([]byte, int64(overflow+1)*v.meta.pageSize)
	_, err := v.file.ReadAt(page, at)
	return page, err
}

func kind(page []byte) uint16 { return order.Uint16(page[8:]) }
func count(page []byte) int   { return int(order.Uint16(page[10:])) }

// freelist notes the free pages as in use, so that none may be reached.
func (v *verifier) freelist() error {
	if v.meta.freelist == noFreelist {
		return nil
	}
	page, err := v.page(v.meta.freelist)
	if err != nil {
		return err
	}
	if kind(page) != freelistKind {
		return damaged("page %d: no free list", v.meta.freelist)
	}
	ids, n := page[pageHeader:], uint64(count(page))
	if n == 0xFFFF { // the first element says how many
		n, ids = order.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return damaged("page %d: free list too long", v.meta.freelist)
	}
	for ; n > 0; n, ids = n-1, ids[8:] {
		id := order.Uint64(ids)
		if id < 2 || id >= v.meta.pages || v.used[id] {
			return damaged("free page %d", id)
		}
		v.used[id] = true
	}
	return nil
}

// A visit is where in a tree the verifier is.
type visit struct {
	depth    int
	from, to []byte // keys are from one up to the other; nil: any
	value    func(key, value []byte, isBucket bool) error
}

// within reports whether key is where it belongs, behind last, and notes it.
func (at *visit) within(key []byte, last *[]byte) bool {
	ok := (at.from == nil || bytes.Compare(key, at.from) >= 0) &&
		(at.to == nil || bytes.Compare(key, at.to) < 0) &&
		(*last == nil || bytes.Compare(key, *last) > 0)
	*last = key
	return ok
}

// tree verifies a page and all below.
func (v *verifier) tree(id uint64, at visit) error {
	if at.depth++; at.depth > maxDepth {
		return damaged("page %d: too deep", id)
	}
	page, err := v.page(id)
	if err != nil {
		return err
	}
	switch kind(page) {
	case leafKind:
		return leaf(page, at)
	case branchKind:
		return v.branch(page, at)
	}
	return damaged("page %d: neither branch nor leaf", id)
}

// branch verifies the children of a page, whose keys are from the child's own up
// to the next one's.
func (v *verifier) branch(page []byte, at visit) error {
	n := count(page)
	if n == 0 {
		return damaged("empty branch")
	}
	var last []byte
	keys, children := make([][]byte, n), make([]uint64, n)
	for i, data := 0, contents(page); i < n; i++ {
		e, err := data.element(i)
		if err != nil {
			return err
		}
		children[i] = order.Uint64(e[8:])
		keys[i], err = data.next(order.Uint32(e[4:]))
		if err != nil || !data.follow(i, order.Uint32(e), keys[i]) || !at.within(keys[i], &last) {
			return damaged("branch: key out of order")
		}
	}
	for i := range n {
		below := at
		below.from = keys[i]
		if i+1 < n {
			below.to = keys[i+1]
		}
		if err := v.tree(children[i], below); err != nil {
			return err
		}
	}
	return nil
}

// leaf hands all values of a page to the visit. Only the root of a bucket may be
// empty, and bbolt clears what it does not use.
func leaf(page []byte, at visit) error {
	if count(page) == 0 && (at.from != nil || len(bytes.Trim(page[pageHeader:], "\x00")) > 0) {
		return damaged("leaf without elements")
	}
	var last []byte
	for i, data := 0, contents(page); i < count(page); i++ {
		e, err := data.element(i)
		if err != nil {
			return err
		}
		key, err := data.next(order.Uint32(e[8:]))
		if err != nil || len(key) == 0 || !data.follow(i, order.Uint32(e[4:]), key) || !at.within(key, &last) {
			return damaged("leaf: key out of order")
		}
		value, err := data.next(order.Uint32(e[12:]))
		if err != nil {
			return err
		}
		flags := order.Uint32(e)
		if flags > 1 {
			return damaged("leaf: unknown kind of value")
		}
		if err := at.value(key, value, flags == 1); err != nil {
			return err
		}
	}
	return nil
}

// contents returns a reader of the keys and values of a page.
func contents(page []byte) *pageReader {
	return &pageReader{page: page, at: pageHeader + count(page)*elementSize}
}

// A pageReader reads the keys and values of a page in their order.
type pageReader struct {
	page []byte
	at   int // where the next is
}

// element returns element i.
func (r *pageReader) element(i int) ([]byte, error) {
	if start := pageHeader + i*elementSize; start+elementSize <= len(r.page) {
		return r.page[start:][:elementSize], nil
	}
	return nil, damaged("page too short for its %d elements", count(r.page))
}

// next returns the next bytes.
func (r *pageReader) next(size uint32) ([]byte, error) {
	if r.at > len(r.page) || uint64(size) > uint64(len(r.page)-r.at) {
		return nil, damaged("element beyond its page")
	}
	b := r.page[r.at:][:size:size]
	r.at += int(size)
	return b, nil
}

// follow reports whether a key that was just read is where element i has it.
func (r *pageReader) follow(i int, offset uint32, key []byte) bool {
	return pageHeader+i*elementSize+int(offset) == r.at-len(key)
}

// bucket verifies a bucket of the root, which holds nothing else.
func (v *verifier) bucket(name, header []byte, isBucket bool) error {
	if !isBucket || len(header) < bucketHeader {
		return damaged("%q is no bucket", name)
	}
	at := visit{value: func(key, value []byte, isBucket bool) error {
		if isBucket {
			return damaged("bucket in %q", name)
		}
		v.value(name, key, value)
		return nil
	}}
	if root := order.Uint64(header); root != 0 {
		return v.tree(root, at)
	}
	page := header[bucketHeader:]
	if len(page) < pageHeader || kind(page) != leafKind {
		return damaged("bucket %q without a page", name)
	}
	return leaf(page, at)
}

// value verifies a checksum, and notes the schema.
func (v *verifier) value(bucket, key, sealed []byte) {
	data, err := unseal(key, sealed)
	if err == nil && bytes.Equal(bucket, metaBucket) && bytes.Equal(key, schemaKey) {
		v.schema, err = strconv.Atoi(string(data))
	}
	if err != nil && v.badValue == nil {
		v.badValue = damaged("%s: a value: %v", bucket, err)
	}
}
