package state

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/portsnare/portsnare/detector"
)

// SaveBans stores what bans are to be kept, or what of them has changed. It
// returns when that is on the disk. Call it from time to time also without
// changes: from the time of the last call a daemon that was killed knows how long
// it was away.
func (d *DB) SaveBans(s detector.BanState) error {
	return d.commit(0, func(tx *bbolt.Tx, _ *batch) error {
		if s.Whole {
			if err := tx.DeleteBucket(bansBucket); err != nil {
				return err
			}
			if _, err := tx.CreateBucket(bansBucket); err != nil {
				return err
			}
		}
		bucket := tx.Bucket(bansBucket)
		for i := range s.Sources {
			if err := save(bucket, &s.Sources[i]); err != nil {
				return err
			}
		}
		at, err := s.At.MarshalText()
		if err != nil {
			return err
		}
		return put(tx.Bucket(metaBucket), savedAtKey, at)
	})
}

func save(bucket *bbolt.Bucket, s *detector.Standing) error {
	key, err := s.Source.MarshalBinary()
	if err != nil {
		return err
	}
	if !s.Known() {
		return bucket.Delete(key)
	}
	data, err := json.Marshal(toStored(s))
	if err != nil {
		return err
	}
	return put(bucket, key, data)
}

// LoadBans returns what was saved, for [detector.Bans.Restore]; nothing from a new
// file.
func (d *DB) LoadBans() (detector.BanState, error) {
	s := detector.BanState{Whole: true}
	err := d.view(func(tx *bbolt.Tx) error {
		at := tx.Bucket(metaBucket).Get(savedAtKey)
		if at == nil {
			return nil
		}
		text, err := unseal(savedAtKey, at)
		if err != nil {
			return err
		}
		if err := s.At.UnmarshalText(text); err != nil {
			return err
		}
		return tx.Bucket(bansBucket).ForEach(func(key, value []byte) error {
			standing, err := load(key, value)
			s.Sources = append(s.Sources, standing)
			return err
		})
	})
	if err != nil {
		return detector.BanState{}, fmt.Errorf("load bans: %w", err)
	}
	slices.SortFunc(s.Sources, func(a, b detector.Standing) int { return a.Source.Compare(b.Source) })
	return s, nil
}

func load(key, value []byte) (detector.Standing, error) {
	var source netip.Prefix
	var stored storedSource
	data, err := unseal(key, value)
	if err == nil {
		err = source.UnmarshalBinary(key)
	}
	if err == nil {
		err = json.Unmarshal(data, &stored)
	}
	return stored.standing(source), err
}

// A storedSource is a [detector.Standing] in the file. Names and meanings stay, in
// the probe too; what an older daemon does not know it skips.
type storedSource struct {
	Ban      *storedBan `json:"ban,omitempty"`
	Offences int        `json:"offences,omitempty"`
	Since    time.Time  `json:"since,omitzero"`
	Grace    time.Time  `json:"grace,omitzero"`
}

type storedBan struct {
	Until    time.Time         `json:"until,omitzero"`
	Evidence detector.Evidence `json:"evidence"`
	Reason   string            `json:"reason"`
	Origin   string            `json:"origin"`
	Probe    detector.Probe    `json:"probe,omitzero"`
}

func toStored(s *detector.Standing) storedSource {
	stored := storedSource{Offences: s.Offences, Since: s.Since.UTC(), Grace: s.Grace.UTC()}
	if b := s.Ban; b != nil {
		stored.Ban = &storedBan{
			Until: b.Until.UTC(), Evidence: b.Evidence, Reason: b.Reason, Origin: b.Origin, Probe: b.Probe,
		}
	}
	return stored
}

func (s *storedSource) standing(source netip.Prefix) detector.Standing {
	standing := detector.Standing{Source: source, Offences: s.Offences, Since: s.Since, Grace: s.Grace}
	if b := s.Ban; b != nil {
		standing.Ban = &detector.Ban{
			Source: source,
			Until:  b.Until, Evidence: b.Evidence, Reason: b.Reason, Origin: b.Origin, Probe: b.Probe,
		}
	}
	return standing
}
