package state

import (
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"
)

// allowedBucket holds what the operator has never banned: a key for each prefix,
// with nothing behind it. It came with no new schema, since an older daemon only
// passes over it.
var allowedBucket = []byte("allowed")

// SaveAllowed stores a prefix that the operator has never banned, or forgets it. It
// returns when that is on the disk.
func (d *DB) SaveAllowed(prefix netip.Prefix, allowed bool) error {
	key, err := prefix.MarshalBinary()
	if err != nil {
		return fmt.Errorf("save what is allowed: %w", err)
	}
	return d.commit(0, func(tx *bbolt.Tx, _ *batch) error {
		bucket, err := tx.CreateBucketIfNotExists(allowedBucket)
		switch {
		case err != nil:
			return err
		case allowed:
			return put(bucket, key, nil)
		}
		return bucket.Delete(key)
	})
}

// LoadAllowed returns what the operator has never banned, in order.
func (d *DB) LoadAllowed() ([]netip.Prefix, error) {
	var all []netip.Prefix
	err := d.view(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(allowedBucket)
		if bucket == nil {
			return nil
		}
		return bucket.ForEach(func(key, value []byte) error {
			if _, err := unseal(key, value); err != nil {
				return err
			}
			var prefix netip.Prefix
			err := prefix.UnmarshalBinary(key)
			all = append(all, prefix)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("load what is allowed: %w", err)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all, nil
}
